"""The comparison puts together what its parts give, and corrects over everything it shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk
from toy_results import write_result

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.bootstrap import cv_interval
from wsi_dino.evaluation.comparison import FIGURES, Resampling, compare_tasks, table_rows, verdict
from wsi_dino.evaluation.metrics import STATISTICS
from wsi_dino.evaluation.multiple_testing import holm
from wsi_dino.evaluation.task_result import TaskResult, read_result

QUICK = Resampling(300, 999, 0)


def _results(folder: Path, task: str = "er", **quality: float) -> list[TaskResult]:
    return [read_result(write_result(folder, task, name, quality=each)) for name, each in quality.items()]


def test_figures_equal_scikit_learn_and_mil(tmp_path: Path) -> None:
    results = _results(tmp_path, good=2.0, poor=0.2)
    [section] = compare_tasks([results], QUICK)
    for result, encoder in zip(results, section["encoders"], strict=True):
        figures = encoder["figures"]
        for name in FIGURES:
            interval = cv_interval(result.folds, STATISTICS[name], n_resamples=300, seed=0)
            assert figures[name]["value"] == pytest.approx(result.metrics["summary"][name]["value"])
            assert (figures[name]["low"], figures[name]["high"]) == pytest.approx((interval.low, interval.high))
        macro = [sk.f1_score(f.y_true, f.scores >= 0.5, average="macro") for f in result.folds]
        assert figures["macro_f1"]["value"] == pytest.approx(np.mean(macro))


def test_difference_is_that_of_the_figures_and_paired(tmp_path: Path) -> None:
    results = _results(tmp_path, a=1.0, b=1.0)
    [section] = compare_tasks([results, ], QUICK)  # fmt: skip
    [pair] = section["pairs"]
    a, b = (encoder["figures"] for encoder in section["encoders"])
    for name in FIGURES:
        assert pair["difference"][name]["value"] == pytest.approx(a[name]["value"] - b[name]["value"])
    same = compare_tasks([[results[0], results[0]]], QUICK)[0]["pairs"][0]
    assert same["difference"]["auc"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert same["delong"]["p"] == same["permutation"]["p"] == 1.0


def test_holm_counts_all_pairs_of_all_tasks(tmp_path: Path) -> None:
    tasks = [_results(tmp_path, task, a=0.4, b=1.2, c=1.0) for task in ("er", "pr")]
    sections = compare_tasks(tasks, QUICK)
    pairs = [pair for section in sections for pair in section["pairs"]]
    assert len(pairs) == 6
    for test in ("delong", "permutation"):
        assert [pair[test]["p_holm"] for pair in pairs] == pytest.approx(holm([pair[test]["p"] for pair in pairs]))


def test_order_of_encoders_turns_the_signs_alone(tmp_path: Path) -> None:
    results = _results(tmp_path, a=1.5, b=0.5)
    [there], [back] = (compare_tasks([each], QUICK)[0]["pairs"] for each in (results, results[::-1]))
    for test in ("delong", "permutation"):
        assert there[test]["p"] == back[test]["p"]
    for name in FIGURES:
        one, other = there["difference"][name], back["difference"][name]
        assert [one["value"], one["low"], one["high"]] == pytest.approx(
            [-other["value"], -other["high"], -other["low"]]
        )


def test_other_folds_are_refused(tmp_path: Path) -> None:
    first = read_result(write_result(tmp_path, "er", "a"))
    other = read_result(write_result(tmp_path, "er", "b", fold_seed=1))
    with pytest.raises(ResultError, match="their folds differ"):
        compare_tasks([[first, other]], QUICK)


def test_three_classes_have_macro_figures_only(tmp_path: Path) -> None:
    results = [read_result(write_result(tmp_path, "aln", n, classes=("N0", "N1", "N2"))) for n in ("a", "b")]
    [section] = compare_tasks([results], QUICK)
    assert set(section["encoders"][0]["figures"]) == set(FIGURES)
    assert 0 < section["pairs"][0]["delong"]["p"] <= 1


def test_perfect_encoder_is_compared_without_its_own_variance(tmp_path: Path) -> None:
    perfect = np.arange(60) % 2 * 0.8 + 0.1
    results = [
        read_result(write_result(tmp_path, "er", "perfect", scores=perfect)),
        read_result(write_result(tmp_path, "er", "poor", quality=0.3)),
    ]
    [section] = compare_tasks([results], QUICK)
    assert "variance is 0" in section["encoders"][0]["delong"]["note"]
    assert math.isnan(section["encoders"][0]["delong"]["low"])
    assert section["pairs"][0]["permutation"]["p"] < 0.05


def test_verdict_names_what_is_shown_and_what_is_not(tmp_path: Path) -> None:
    [section] = compare_tasks([_results(tmp_path, good=3.0, same=2.9, poor=0.0)], QUICK)
    text = verdict(section)
    best = max(section["encoders"], key=lambda encoder: encoder["figures"]["auc"]["value"])["encoder"]
    assert text.startswith(f"{best} has the highest AUC.")
    assert "shown for poor" in text
    assert "Not shown to differ from" in text


def test_table_has_a_row_for_every_figure_and_difference(tmp_path: Path) -> None:
    sections = compare_tasks([_results(tmp_path, a=1.0, b=1.0, c=1.0)], QUICK)
    rows = table_rows(sections)
    assert len(rows) == 3 * 8 + 3 * 8
    tested = [row for row in rows if "p_delong" in row]
    assert len(tested) == 3
    assert {row["figure"] for row in tested} == {"auc"}


def test_papers_rows_stand_beside_their_task_alone(tmp_path: Path) -> None:
    sections = compare_tasks(
        [_results(tmp_path, "camelyon16-cv", a=1.0, b=1.0), _results(tmp_path, a=1.0, b=1.0)], QUICK
    )
    assert [table["table"] for table in sections[0]["published"]] == ["Table 3"]
    assert sections[1]["published"] == []
