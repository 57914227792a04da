"""The search for the paper's conventions, and the table of a scaling study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.paper_like import PRINTED, paper_like
from wsi_dino.evaluation.size_study import study_rows, write_study


def _fold(n: int = 400, n_labels: int = 5) -> FoldScores:
    random = np.random.default_rng(0)
    scores = random.random((n, n_labels)) ** 3
    targets = (random.random((n, n_labels)) < scores).astype(float)
    return FoldScores(targets, scores, [str(i) for i in range(n)], targets, scores, np.arange(n))


def test_no_finding_is_scored_as_the_product() -> None:
    fold = _fold()
    found = paper_like([fold], list("abcde"), shown=10_000)
    rows = [
        row for row in found["rows"]
        if "product" in row["labels"] and row["convention"] == "example-based" and row["threshold"].startswith("0.3 ")
    ]  # fmt: skip
    said = np.column_stack([fold.scores, np.prod(1 - fold.scores, axis=1)]) >= 0.3
    truth = np.column_stack([fold.targets, fold.targets.sum(1) == 0]).astype(int)
    expected: dict[Any, Any] = {
        zero: (
            sk.jaccard_score(truth, said, average="samples", zero_division=zero),
            sk.precision_score(truth, said, average="samples", zero_division=zero),
            sk.recall_score(truth, said, average="samples", zero_division=zero),
        )
        for zero in (0, 1)
    }
    for row in rows:
        triple = row["accuracy"], row["precision"], row["recall"]
        zeros = [0, 1] if row["zero_division"] == "0 or 1" else [row["zero_division"]]
        for zero in zeros:
            assert triple == pytest.approx(expected[zero])
    assert rows


def test_a_learnt_label_is_taken_as_it_is() -> None:
    fold = _fold()
    found = paper_like([fold], ["a", "b", "c", "d", "No Finding"], no_finding="No Finding", shown=10_000)
    names = {row["labels"] for row in found["rows"]}
    assert names == {"4 findings", "4 findings and No Finding (learnt)"}


def test_the_nearest_comes_first_and_the_note_says_how_many_were_tried() -> None:
    found = paper_like([_fold()], list("abcde"), shown=10_000)
    distances = [row["distance"] for row in found["rows"]]
    assert distances == sorted(distances)
    first = found["rows"][0]
    triple = first["accuracy"], first["precision"], first["recall"]
    assert first["distance"] == pytest.approx(
        min(max(abs(a - b) for a, b in zip(triple, row, strict=True)) for row in PRINTED.values())
    )
    assert "among 416 combinations" in found["note"]
    assert "not a finding" in found["note"]


def _result(encoder: str, size: int, value: float | None) -> dict[str, Any]:
    figure = {"value": value, "low": None if value is None else value - 0.1, "high": value and value + 0.1}
    summary = {"auc_macro": figure, "auc_macro_frequent": {**figure, "n_labels": 3}}
    return {
        "encoder": encoder, "input_px": size, "labels": {"a": {}}, "summary": summary, "check": {"summary": summary},
        "images": {"used": 5, "failed": 0}, "protocol": {"intervals": "95 %"},
    }  # fmt: skip


def test_a_study_orders_sizes_and_leaves_a_gap_where_there_is_no_figure(tmp_path: Path) -> None:
    results = [_result("b", 512, 0.7), _result("b", 224, 0.6), _result("a", 224, None)]
    assert [(row["encoder"], row["input_px"]) for row in study_rows(results)] == [("b", 224), ("b", 512), ("a", 224)]
    files = write_study(tmp_path, results)
    first = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_study(tmp_path, results)] == first
    assert (tmp_path / "study.csv").read_text().splitlines()[3].startswith("a,224,3,,,")
