"""What the report says of survival, numbers and labels: in words, safely, and also where a figure is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_dino.evaluation.survival import brier_at, calibration_at, compare_groups
from wsi_dino.evaluation.target_report import HEADLINES, target_part, verdict

_HOSTILE = '<script>alert("x")</script>'


def _survival(n: int = 40, *, one_group: bool = False) -> dict[str, Any]:
    random = np.random.default_rng(0)
    time, event, predicted = random.exponential(9, n), random.integers(0, 2, n), random.random(n)
    group = np.zeros(n, int) if one_group else np.arange(n) % 2
    calibration = {
        "method": "groups", "groups": calibration_at(time, event, predicted, 5.0),
        "brier": brier_at(time, event, predicted, list(map(str, range(n))), 5.0, n_resamples=50),
    }  # fmt: skip
    compared = compare_groups(time, event, group, ("low", "high"))
    section = {**compared, "calibration": calibration, "horizon": 5.0, "cut": "by the median"}
    figure = {"value": 0.7, "low": 0.6, "high": 0.8}
    columns = [_HOSTILE, "died"]
    return {"kind": "survival", "columns": columns, "survival": section, "summary": {"c_index": figure}}


def _labels(value: float | None) -> dict[str, Any]:
    auc = {"value": value, "low": value, "high": value}
    row = {"name": _HOSTILE, "positive": "1", "n_known": 9, "n_positive": 4, "auc": auc, "n_folds": 0}
    return {"kind": "labels", "columns": [_HOSTILE, "b"], "labels": [row], "summary": {"auc": auc}}


def _regression() -> dict[str, Any]:
    figure = {"value": -0.3, "low": -0.6, "high": -0.1}
    return {"kind": "regression", "columns": [_HOSTILE], "regression": {}, "summary": {"r2": figure}}


_ROWS: list[dict[str, Any]] = [
    {"fold": 0, "subset": "test", "target": "x", "value": v, "predicted": v / 2} for v in (1.0, 2.0, 4.0)
]


@pytest.mark.parametrize("metrics", [_survival(), _survival(one_group=True), _survival(4), _labels(0.8), _labels(None),
                                     _regression()])  # fmt: skip
def test_names_from_the_table_are_shown_not_run(metrics: dict[str, Any], tmp_path: Path) -> None:
    part = target_part(metrics, _ROWS)
    assert "<script" not in part.body
    assert part.headline == HEADLINES[metrics["kind"]]
    for picture in part.pictures:
        assert picture.page_svg() in part.body
        assert [path.suffix for path in picture.save(tmp_path)] == [".svg", ".png"]
    assert part.columns == ("fold", "value", "predicted")


def test_the_test_of_one_group_is_said_not_to_be_known() -> None:
    assert "not known" in target_part(_survival(one_group=True), _ROWS).body


@pytest.mark.parametrize(
    ("kind", "figure", "tone"),
    [
        ("survival", (0.7, 0.6, 0.8), "good"),
        ("survival", (0.55, 0.45, 0.65), "doubt"),
        ("survival", (0.3, 0.2, 0.45), "bad"),
        ("survival", (None, None, None), "doubt"),
        ("labels", (0.7, 0.6, 0.8), "good"),
        ("regression", (0.3, 0.1, 0.5), "good"),
        ("regression", (-0.3, -0.6, -0.1), "bad"),
        ("regression", (0.1, -0.2, 0.3), "doubt"),
    ],
)
def test_verdict(kind: str, figure: tuple[float | None, ...], tone: str) -> None:
    assert verdict(kind, dict(zip(("value", "low", "high"), figure, strict=True)))["tone"] == tone
