"""What `mil` wrote for one task and encoder, read back so that encoders can be compared slide by slide."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.bootstrap import FoldPredictions, figure_of
from wsi_dino.evaluation.metrics import STATISTICS

COMPARISON_FOLDER = "comparison"
_SHOWN = 3
_SAME = 1e-6  # scores survive the CSV exactly; figures are summed in another order


@dataclass(frozen=True)
class TaskResult:
    """Held-out predictions of one encoder on one task.

    Attributes:
        task, encoder: names.
        folds: one a fold, slides sorted by id.
        slide_ids: the slides of each fold, in that order.
        subset_of: for each fold the subset of each patient.
        metrics: the content of metrics.json.
    """

    task: str
    encoder: str
    folds: tuple[FoldPredictions, ...]
    slide_ids: tuple[tuple[str, ...], ...]
    subset_of: tuple[Mapping[str, str], ...]
    metrics: Mapping[str, Any]

    @property
    def classes(self) -> list[str]:
        """Class names, the negative one first."""
        return list(self.metrics["classes"])


def find_results(task_folder: Path) -> list[Path]:
    """Return the folders of the encoders that have results below ``RUN/mil/TASK``, sorted by name."""
    folders = (path.parent for path in task_folder.glob("*/metrics.json"))
    return sorted(folder for folder in folders if folder.name != COMPARISON_FOLDER)


def read_result(folder: Path) -> TaskResult:
    """Read ``RUN/mil/TASK/ENCODER``.

    Raises:
        ResultError: a file is missing or broken, the labels were permuted, the task has no classes, a
            score is not finite, or metrics.json belongs to other predictions.
    """
    metrics = _read_json(folder / "metrics.json")
    doing = f"Reading the results in {folder}"
    if metrics.get("permuted_labels") is not None:
        raise ResultError(f"{doing}: their labels were permuted (seed {metrics['permuted_labels']}); not a result.")
    if metrics.get("kind"):
        raise ResultError(
            f"{doing}: the task is of kind {metrics['kind']}. `compare` tests differences of the AUC of classes "
            "(DeLong, permutation), which this target has not; `mil` prints the figures and intervals of each encoder."
        )
    if len(metrics.get("classes") or ()) < 2 or "auc" not in metrics.get("summary", {}):
        raise ResultError(f"{doing}: expected a task of classes with an AUC; this one cannot be compared.")
    rows = [row for row in _read_csv(folder / "predictions.csv") if row["subset"] == "test"]
    numbers = [int(fold["fold"]) for fold in metrics["folds"]]
    of_fold = [sorted((r for r in rows if int(r["fold"]) == n), key=lambda r: r["slide_id"]) for n in numbers]
    if not all(of_fold):
        raise ResultError(f"{doing}: predictions.csv lacks a fold of metrics.json. Run `wsi-dino mil` again.")
    folds = [_fold(doing, members, fold, metrics) for members, fold in zip(of_fold, metrics["folds"], strict=True)]
    _check_they_belong_together(doing, folds, metrics)
    slides = tuple(tuple(row["slide_id"] for row in members) for members in of_fold)
    subsets = _read_subsets(folder / "splits.csv", numbers)
    name = str(metrics.get("result_name") or metrics["encoder"])  # names the model where it is not the usual one
    return TaskResult(metrics["task"], name, tuple(folds), slides, subsets, metrics)


def _fold(doing: str, rows: Sequence[Mapping[str, str]], fold: Mapping[str, Any], metrics: Mapping[str, Any]) -> Any:
    classes = metrics["classes"]
    columns = ["score"] if len(classes) == 2 else [f"score_{name}" for name in classes]
    try:
        scores = np.array([[float(row[column]) for column in columns] for row in rows])
        labels = np.array([int(row["label"]) for row in rows], np.int64)
    except (KeyError, ValueError) as error:
        raise ResultError(f"{doing}: predictions.csv, fold {fold['fold']}: a score or label is missing.") from error
    if not np.isfinite(scores).all():
        slide = rows[int(np.flatnonzero(~np.isfinite(scores).all(1))[0])]["slide_id"]
        raise ResultError(f"{doing}: predictions.csv, fold {fold['fold']}: the score of slide {slide} is no number.")
    threshold = fold["threshold"] if fold.get("threshold") is not None else 0.5
    patients = [row["patient_id"] for row in rows]
    return FoldPredictions(labels, scores[:, 0] if len(classes) == 2 else scores, patients, float(threshold))


def _check_they_belong_together(doing: str, folds: Sequence[FoldPredictions], metrics: Mapping[str, Any]) -> None:
    stated = metrics["summary"]["auc"]["value"]
    found = float(np.mean([figure_of(STATISTICS["auc"], fold) for fold in folds]))
    if stated is not None and not math.isnan(found) and abs(found - stated) > _SAME:
        raise ResultError(
            f"{doing}: predictions.csv gives a mean AUC of {found:.4f}, metrics.json says {stated:.4f}. "
            "They do not belong together: run `wsi-dino mil` again."
        )


def _read_subsets(path: Path, numbers: Sequence[int]) -> tuple[Mapping[str, str], ...]:
    subset_of: dict[int, dict[str, str]] = {number: {} for number in numbers}
    for row in _read_csv(path):
        subset_of.setdefault(int(row["fold"]), {})[row["patient_id"]] = row["subset"]
    return tuple(subset_of[number] for number in sorted(subset_of))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read metrics.json of ``RUN/mil/TASK/ENCODER``.

    Raises:
        ResultError: it is missing or broken.
    """
    return _read_json(folder / "metrics.json")


def read_test_rows(folder: Path) -> list[dict[str, str]]:
    """Read the rows of held-out slides of predictions.csv of ``RUN/mil/TASK/ENCODER``.

    Raises:
        ResultError: it is missing or broken.
    """
    return [row for row in _read_csv(folder / "predictions.csv") if row["subset"] == "test"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"Reading {path}: missing or broken. `wsi-dino mil` writes it.") from error
    return dict(content)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"Reading {path}: missing or broken. `wsi-dino mil` writes it.") from error


# may they be compared? ------------------------------------------------------------------------
def check_comparable(results: Sequence[TaskResult]) -> None:
    """Check that all encoders were trained and tested on the same patients, fold by fold.

    Raises:
        ResultError: naming the first difference.
    """
    for other in results[1:]:
        difference = _difference(results[0], other)
        if difference:
            raise ResultError(
                f"Comparing {results[0].encoder} and {other.encoder} on task {other.task}: {difference} Only the same "
                "folds can be compared: run `wsi-dino mil` for both with the same --labels and --folds, --seed or "
                "--splits, after both have features of every slide."
            )


def _difference(first: TaskResult, other: TaskResult) -> str:
    if first.classes != other.classes:
        return f"their classes differ ({', '.join(first.classes)} against {', '.join(other.classes)})."
    if len(first.subset_of) != len(other.subset_of):
        return f"{first.encoder} has {len(first.subset_of)} folds, {other.encoder} {len(other.subset_of)}."
    for number in range(len(first.subset_of)):
        found = _moved_patients(first, other, number) or _other_slides(first, other, number)
        if found:
            return found
    return ""


def _moved_patients(first: TaskResult, other: TaskResult, number: int) -> str:
    here, there = first.subset_of[number], other.subset_of[number]
    moved = [patient for patient in sorted({*here, *there}) if here.get(patient) != there.get(patient)]
    if not moved:
        return ""
    places = [subsets.get(moved[0], "no subset") for subsets in (here, there)]
    return (
        f"their folds differ. Fold {number}: patient {moved[0]} is in {places[0]} for {first.encoder}, in {places[1]} "
        f"for {other.encoder}; {len(moved)} patients in all."
    )


def _other_slides(first: TaskResult, other: TaskResult, number: int) -> str:
    slides, others = first.slide_ids[number], other.slide_ids[number]
    alone = sorted(set(slides) ^ set(others))
    if alone:
        named = ", ".join(alone[:_SHOWN])
        return f"in fold {number}, {len(alone)} slides were tested by one of them only ({named})."
    fold, fellow = first.folds[number], other.folds[number]
    for index, slide in enumerate(slides):
        if fold.y_true[index] != fellow.y_true[index]:
            return f"in fold {number}, slide {slide} has another label."
        if fold.patient_id[index] != fellow.patient_id[index]:
            return f"in fold {number}, slide {slide} is of another patient."
    return ""
