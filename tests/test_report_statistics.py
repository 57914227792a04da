"""The statistics in a task's report: both averages named, DeLong beside the bootstrap, figures drawn."""

from __future__ import annotations

import re

import numpy as np
import pytest

from wsi_dino.evaluation.bootstrap import FoldPredictions
from wsi_dino.evaluation.report_statistics import statistics_html
from wsi_dino.mil.statistics_section import statistics_section
from wsi_dino.provenance import without_nan


def _folds(n_classes: int = 2, shift: float = 1.0) -> list[FoldPredictions]:
    folds = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        y = np.arange(40) % n_classes
        scores = np.exp(rng.normal(size=(40, n_classes)) + shift * np.eye(n_classes)[y])
        scores /= scores.sum(1, keepdims=True)
        folds.append(FoldPredictions(y, scores[:, 1] if n_classes == 2 else scores, [f"{seed}-{i}" for i in range(40)]))
    return folds


def _section(folds: list[FoldPredictions]) -> dict:  # type: ignore[type-arg]
    return without_nan(statistics_section(folds, {"n_bins": 10, "ece": 0.1}, n_resamples=100, seed=0))


def test_section_says_unit_scale_and_both_averages() -> None:
    section = _section(_folds())
    assert section["delong"]["auc"]["scale"] == "logit"
    assert section["delong"]["unit"] == "patients, one slide each"
    assert set(section["averages"]) == {"text", "positive_class", "macro"}
    assert section["calibration"]["ece"] == 0.1
    assert section["calibration"]["intervals"]["ece"]["low"] > 0
    html = str(statistics_html(section))
    assert "positive class" in html
    assert "macro over classes" in html
    assert f"{section['averages']['macro']['precision']['value']:.3f}" in html
    assert "logit scale" in html
    assert html.count("<svg") == 2


def test_slides_of_one_patient_are_said_to_be_clustered() -> None:
    folds = [FoldPredictions(f.y_true, f.scores, [p[:3] for p in f.patient_id]) for f in _folds()]
    assert "Obuchowski" in _section(folds)["delong"]["unit"]


def test_three_classes_have_no_decision_curve() -> None:
    section = _section(_folds(3))
    assert section["decision_curve"] is None
    assert set(section["averages"]) == {"text", "macro"}
    assert "brier" not in section["calibration"]["intervals"]
    assert str(statistics_html(section)).count("<svg") == 1


def test_perfect_separation_says_why_there_is_no_interval() -> None:
    perfect = [FoldPredictions(f.y_true, f.y_true * 0.8 + 0.1, f.patient_id) for f in _folds()]
    section = _section(perfect)
    assert section["delong"]["auc"]["low"] is None
    assert section["selective"]["aurc"]["value"] == 0
    assert "variance is 0" in str(statistics_html(section))


@pytest.mark.parametrize("n", [3, 4])
def test_tiny_cohorts_are_told_not_fatal(n: int) -> None:
    fold = FoldPredictions(np.array([0, 1, 0, 1])[:n], np.array([0.2, 0.4, 0.6, 0.9])[:n], list("abcd")[:n])
    assert "Both ways of averaging" in str(statistics_html(_section([fold])))


def test_papers_rows_stand_in_the_report_of_their_task() -> None:
    html = str(statistics_html({"task": "camelyon16-official"}))
    assert "Table 3" in html
    assert "not reproduced here" in html
    assert "macro over classes" in html
    assert "Table" not in str(statistics_html({"task": "bcnb-er"}))


def test_what_is_missing_is_left_out() -> None:
    assert re.sub(r"\s", "", str(statistics_html({}))) == ""
