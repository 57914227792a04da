"""Rows of scores, one a case and class, and their means, with every convention named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.evaluation.lesions import PatientOverlap, aggregate_dice_of_classes, compute_false_volumes
from wsi_dino.evaluation.segmentation import (
    Overlap,
    compute_mask_metrics,
    compute_overlap,
    mean_of_valid,
    voxel_volume_ml,
)
from wsi_dino.segmentation.request import ScoringSpec

CONVENTIONS = {
    "dice": "NaN, left out of means, only when truth and prediction are both empty, as nnU-Net does; 0 when one is",
    "dice_both_empty_1": "1 when truth and prediction are both empty, as MONAI's ignore_empty=False does",
    "precision": "voxelwise; NaN when nothing was predicted",
    "recall": "voxelwise; NaN when the truth is empty",
}


def score_labels(
    truth: npt.NDArray[np.uint8],
    predicted: npt.NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    classes: Mapping[int, str],
    scoring: ScoringSpec,
    *,
    with_false_volumes: bool = False,
) -> list[dict[str, Any]]:
    """Return one row a class: Dice, HD95, precision, recall, counts and volumes; for autoPET false volumes too.

    Rows are kept as JSON, which has neither NaN nor infinity: NaN is None and infinity the text ``inf``.

    Examples:
        >>> truth = np.zeros((1, 2, 4), np.uint8); truth[0, 0] = 1
        >>> half = truth.copy(); half[0, 0, 2:] = 0
        >>> (row,) = score_labels(truth, half, (1, 1, 1), {1: "organ"}, ScoringSpec())
        >>> row["class"], round(row["dice"], 3), row["recall"], row["common_voxels"]
        ('organ', 0.667, 0.5, 2)
    """
    return [
        _row(truth == value, predicted == value, spacing_mm, name, scoring, with_false_volumes)
        for value, name in classes.items()
    ]


def _row(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: tuple[float, float, float],
    name: str,
    scoring: ScoringSpec,
    with_false_volumes: bool,
) -> dict[str, Any]:
    metrics = compute_mask_metrics(truth, predicted, spacing_mm, definition=scoring.definition, empty=scoring.empty)
    overlap = compute_overlap(truth, predicted)
    row: dict[str, Any] = {
        "class": name, "dice": metrics.dice_nn, "dice_both_empty_1": metrics.dice_1, "hd95_mm": metrics.hd95_mm,
        "precision": metrics.precision, "recall": metrics.recall, "truth_voxels": overlap.tp + overlap.fn,
        "predicted_voxels": overlap.tp + overlap.fp, "common_voxels": overlap.tp,
        "voxel_ml": voxel_volume_ml(spacing_mm), "truth_ml": metrics.truth_ml, "predicted_ml": metrics.predicted_ml,
    }  # fmt: skip
    if with_false_volumes:
        volumes = compute_false_volumes(truth, predicted, spacing_mm)
        row |= {"false_positive_ml": volumes.false_positive_ml, "false_negative_ml": volumes.false_negative_ml}
    return {key: _storable(value) for key, value in row.items()}


def _storable(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf"


def mean_over_cases(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Average one metric over the classes of each case, then over cases; NaN is left out and counted.

    An infinite distance counts as infinite, as it does when it was asked for.

    Args:
        rows: one a case and class, as `score_labels` has them, with ``case_id`` and ``fold``.
        name: of the metric.

    Returns:
        ``mean``, ``median``, ``per_class`` (means over cases), ``n_valid`` and ``n_total`` (cases and classes), and
        both per class.

    Examples:
        >>> rows = [{"case_id": "a", "fold": 0, "class": "x", "dice": 1.0},
        ...         {"case_id": "a", "fold": 0, "class": "y", "dice": 0.5},
        ...         {"case_id": "b", "fold": 0, "class": "x", "dice": 0.5},
        ...         {"case_id": "b", "fold": 0, "class": "y", "dice": None}]
        >>> summary = mean_over_cases(rows, "dice")
        >>> summary["mean"], summary["per_class"], summary["n_valid"], summary["n_total"]
        (0.625, {'x': 0.75, 'y': 0.5}, 3, 4)
    """
    by_case, by_class = _grouped(rows, ("fold", "case_id"), name), _grouped(rows, ("class",), name)
    of_cases = mean_of_valid(mean_of_valid(values).mean for values in by_case.values())
    of_classes = {key[0]: mean_of_valid(values) for key, values in by_class.items()}
    return {
        "mean": of_cases.mean,
        "median": of_cases.median,
        "per_class": {key: value.mean for key, value in of_classes.items()},
        "n_valid": sum(value.n_valid for value in of_classes.values()),
        "n_total": len(rows),
        "n_valid_per_class": {key: value.n_valid for key, value in of_classes.items()},
        "n_total_per_class": {key: value.n_total for key, value in of_classes.items()},
    }


def _grouped(rows: Sequence[Mapping[str, Any]], keys: tuple[str, ...], name: str) -> dict[tuple[str, ...], list[float]]:
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        value = row[name]
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(math.nan if value is None else float(value))
    return groups


def aggregated_dice(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return HECKTOR's aggregated Dice over all cases: ``mean``, by which it ranks, and ``per_class``."""
    patients: dict[tuple[str, str], dict[str, PatientOverlap]] = {}
    for row in rows:
        tp = row["common_voxels"]
        overlap = Overlap(tp, row["predicted_voxels"] - tp, row["truth_voxels"] - tp)
        of_case = patients.setdefault((str(row["fold"]), row["case_id"]), {})
        of_case[row["class"]] = PatientOverlap(overlap, row["voxel_ml"])
    found = aggregate_dice_of_classes(list(patients.values()))
    return {"mean": found.pop("mean"), "per_class": found}
