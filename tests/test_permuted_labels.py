"""Permuted labels keep all that they should, and leave the whole pipeline with nothing to find."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from toy_features import SMALL, make_run

from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.mil.permuted_labels import permuted_cohort


def _cohort(n: int = 40, slides_each: int = 1, mixed: bool = False) -> Cohort:
    rows = []
    for patient in range(n):
        for slide in range(slides_each):
            label = (patient + (slide if mixed else 0)) % 2
            rows.append(CohortRow(f"S{patient}-{slide}", f"P{patient}", ("neg", "pos")[label], label))
    return Cohort(tuple(rows), ("neg", "pos"), "er")


@pytest.mark.parametrize(("slides_each", "mixed"), [(1, False), (3, False), (2, True)])
def test_slides_and_classes_stay(slides_each: int, mixed: bool) -> None:
    cohort = _cohort(40, slides_each, mixed)
    permuted = permuted_cohort(cohort, seed=1)
    assert permuted.slide_ids == cohort.slide_ids
    assert permuted.patient_ids == cohort.patient_ids
    assert permuted.counts() == cohort.counts()
    assert {(row.target, row.label) for row in permuted} == {("neg", 0), ("pos", 1)}
    assert bool(permuted.conflicting_patients) == mixed


def test_labels_move_and_the_seed_decides() -> None:
    cohort = _cohort(200)
    first, again, other = (permuted_cohort(cohort, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert 0.4 < np.mean(first.labels == cohort.labels) < 0.6


def test_patients_with_unlike_slides_exchange_with_their_like() -> None:
    rows = [CohortRow(f"A{i}", f"P{i}", "pos", 1) for i in range(6)]
    rows += [CohortRow(f"B{i}-{j}", f"Q{i}", ("neg", "pos")[j], j) for i in range(4) for j in range(2)]
    permuted = permuted_cohort(Cohort(tuple(rows), ("neg", "pos"), "er"), seed=0)
    assert all(row.label == 1 for row in permuted if row.slide_id.startswith("A"))
    assert Counter(row.label for row in permuted if row.slide_id.startswith("B")) == {0: 4, 1: 4}


def test_fixed_subsets_are_permuted_each_by_itself() -> None:
    cohort = _cohort(40)
    subset_of = {f"P{i}": "train" if i < 30 else "test" for i in range(40)}
    permuted = permuted_cohort(cohort, 3, subset_of)
    tested = [row for row in permuted if subset_of[row.patient_id] == "test"]
    assert sum(row.label for row in tested) == 5


def _mil(folder: Path, *more: object) -> dict:  # type: ignore[type-arg]
    request = (
        "--run",
        "run",
        "--labels",
        "labels.csv",
        "--target",
        "ER",
        *SMALL,
        "--folds",
        3,
        "--no-report",
        "--json",
    )
    ran = run_command(folder, "mil", *request, *more)
    assert ran.code == 0, ran.stderr
    return ran.json


@pytest.mark.slow
def test_pipeline_finds_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    """The labels are easy (AUC 1), so that any way around the permutation would show at once."""
    make_run(tmp_path, 48)
    assert _mil(tmp_path)["summary"]["auc"]["value"] > 0.95
    aucs = [_mil(tmp_path, "--permute-labels", seed)["summary"]["auc"] for seed in range(5)]
    assert 0.4 <= np.mean([auc["value"] for auc in aucs]) <= 0.6
    assert sum(auc["low"] <= 0.5 <= auc["high"] for auc in aucs) >= 4


def test_results_are_marked_loudly_and_lie_apart(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    request = ("--run", "run", "--labels", "labels.csv", "--target", "ER", *SMALL, "--folds", 3)
    assert run_command(tmp_path, "mil", *request, "--no-report").code == 0
    true = (tmp_path / "run/mil/ER/toy/metrics.json").read_bytes()
    ran = run_command(tmp_path, "mil", *request, "--permute-labels", 5)
    assert "THE LABELS WERE PERMUTED (seed 5)" in ran.stdout
    folder = tmp_path / "run/mil/ER-permuted-5/toy"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["permuted_labels"] == 5
    assert metrics["warnings"][0].startswith("THE LABELS WERE PERMUTED")
    page = (folder / "report.html").read_text()
    assert "PERMUTED LABELS (seed 5): not a result" in page
    assert "--permute-labels 5" in page
    assert (tmp_path / "run/mil/ER/toy/metrics.json").read_bytes() == true
    assert json.loads(true)["permuted_labels"] is None
    make_run(tmp_path, 30, encoder="other")
    assert run_command(tmp_path, "mil", *request, "--encoder", "other", "--permute-labels", 5, "--no-report").code == 0
    refused = run_command(tmp_path, "compare", "--run", "run", "--task", "ER-permuted-5")
    assert refused.code == 2
    assert "permuted (seed 5)" in refused.stderr
