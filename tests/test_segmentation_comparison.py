"""Results of a run beside each other: what differs, and by how much on the cases both have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_dino.segmentation.comparison import StoredResult, compare_results, read_results


def _metrics(encoder: str | None = "dinov3-s", **changes: Any) -> dict[str, Any]:
    protocol = {
        "split": "kfold", "limit": None, "layers": [2, 5], "shown_px": 224, "enlargement": 4.57,
        "model": {"image_skip": False, "meeting": "early"}, "features": {"n_views": 1},
        "training": {"epochs": 3, "learning_rate": 1e-3},
    }  # fmt: skip
    return {
        "dataset": "msd-task04", "encoder": encoder, "decoder": "conv3d", "channels": ["mri"],
        "dice": {"mean": 0.5}, "folds": [{"fold": 0, "training_minutes": 1.0}], "protocol": protocol | changes,
    }  # fmt: skip


def _rows(dice: dict[str, float | None], fold: int = 0) -> list[dict[str, Any]]:
    return [
        {"fold": fold, "case_id": case, "patient_id": case, "class": "organ", "dice": value, "hd95_mm": 1.0}
        for case, value in dice.items()
    ]


def test_a_difference_is_that_of_the_cases_both_have() -> None:
    own = StoredResult("a", _metrics(), _rows({"x": 0.5, "y": 0.7, "z": 0.1}))
    other = StoredResult("b", _metrics(shown_px=448, enlargement=9.14), _rows({"x": 0.6, "y": 0.9, "w": 1.0}))
    by_label = {row["label"]: row for row in compare_results(own, [own, other])}
    assert by_label["b"]["n_cases"] == 2
    assert by_label["b"]["dice"] == pytest.approx(0.75)
    difference = by_label["b"]["difference"]
    assert difference["mean"] == pytest.approx(0.15)
    assert 0.1 - 1e-9 <= difference["low"] <= difference["mean"] <= difference["high"] <= 0.2 + 1e-9
    assert by_label["b"]["differs"] == "slices: x9.14, to 448 px instead of x4.57, to 224 px"
    assert by_label["a"]["difference"] is None


def test_equal_results_differ_by_nothing_and_other_folds_share_no_case() -> None:
    own = StoredResult("a", _metrics(), _rows({"x": 0.5, "y": None}))
    same, elsewhere = (StoredResult(name, _metrics(), _rows({"x": 0.5}, fold)) for name, fold in (("b", 0), ("c", 1)))
    by_label = {row["label"]: row for row in compare_results(own, [own, same, elsewhere])}
    assert by_label["b"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert by_label["c"]["difference"] is None
    assert np.isnan(by_label["c"]["dice"])


def test_another_encoder_is_told_without_what_must_differ_with_it() -> None:
    own = StoredResult("a", _metrics(), _rows({"x": 0.5}))
    voxels = StoredResult("b", _metrics(encoder=None, features=None), _rows({"x": 0.5}))
    (row,) = [row for row in compare_results(own, [own, voxels]) if row["label"] == "b"]
    assert row["differs"] == "encoder: none, learns from voxels instead of dinov3-s"


def test_only_whole_results_of_the_same_dataset_and_split_are_read(tmp_path: Path) -> None:
    def write(name: str, text: str, rows: str = "fold,case_id,patient_id,class,status,dice,hd95_mm\n") -> None:
        folder = tmp_path / "segmentation" / "data" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(text)
        (folder / "cases.csv").write_text(rows + "0,x,p,organ,done,0.5,inf\n1,y,p,,failed,,\n")

    write("good", json.dumps(_metrics()))
    write("broken", "{")
    write("older", json.dumps(_metrics() | {"protocol": {"split": "kfold", "limit": None}}))
    write("other-split", json.dumps(_metrics(split="patients")))
    write("other-dataset", json.dumps(_metrics() | {"dataset": "msd-task03"}))
    (found,) = read_results(tmp_path, _metrics())
    assert found.label == "data/good"
    assert [(row["case_id"], row["dice"], row["hd95_mm"]) for row in found.rows] == [("x", 0.5, float("inf"))]
