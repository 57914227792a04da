"""Metrics of segmented volumes: overlap, distance of surfaces in mm, volumes; what happens to empty masks is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import ResultError

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
Definition = Literal["max", "pooled"]
EmptyPolicy = Literal["nan", "inf", "diagonal"]
DEFINITIONS: tuple[Definition, ...] = ("max", "pooled")
EMPTY_POLICIES: tuple[EmptyPolicy, ...] = ("nan", "inf", "diagonal")
CONVENTIONS = {
    "dice": "NaN (left out of means) only when truth and prediction are both empty, as nnU-Net does; "
    "0 when just one of them is",
    "dice_both_empty_1": "1 when truth and prediction are both empty, as MONAI's ignore_empty=False does",
    "precision": "voxelwise; NaN when nothing was predicted",
    "recall": "voxelwise; NaN when the truth is empty",
}


@dataclass(frozen=True)
class ClassScore:
    """One class of one volume.

    Attributes:
        dice, dice_both_empty_1, precision, recall: see `CONVENTIONS`.
        hd95_mm: 95th percentile of surface distances; NaN, infinite or the volume's diagonal when a mask is empty.
        truth_voxels, predicted_voxels, common_voxels: counts.
        truth_ml, predicted_ml: volumes.
    """

    dice: float
    dice_both_empty_1: float
    hd95_mm: float
    precision: float
    recall: float
    truth_voxels: int
    predicted_voxels: int
    common_voxels: int
    truth_ml: float
    predicted_ml: float

    def as_row(self) -> dict[str, float]:
        """Return the fields as a row of a table."""
        return asdict(self)


def score_class(
    truth: Mask,
    predicted: Mask,
    spacing_mm: Spacing,
    *,
    definition: Definition = "max",
    empty: EmptyPolicy = "nan",
) -> ClassScore:
    """Score one class of one volume.

    Args:
        truth: bool ``(z, y, x)``.
        predicted: likewise.
        spacing_mm: (z, y, x).
        definition: see `hd95_mm`.
        empty: see `hd95_mm`.

    Raises:
        ResultError: the masks differ in shape, or are no bool volumes.

    Examples:
        >>> truth = np.zeros((1, 2, 4), bool); truth[0, 0] = True
        >>> half = truth.copy(); half[0, 0, 2:] = False
        >>> round(score_class(truth, half, (1, 1, 1)).dice, 4)
        0.6667
    """
    _require_masks(truth, predicted)
    n_truth, n_predicted = int(truth.sum()), int(predicted.sum())
    common = int((truth & predicted).sum())
    voxel_ml = math.prod(spacing_mm) / 1000
    dice = _ratio(2 * common, n_truth + n_predicted)
    return ClassScore(
        dice=dice,
        dice_both_empty_1=1.0 if n_truth + n_predicted == 0 else dice,
        hd95_mm=hd95_mm(truth, predicted, spacing_mm, definition=definition, empty=empty),
        precision=_ratio(common, n_predicted),
        recall=_ratio(common, n_truth),
        truth_voxels=n_truth,
        predicted_voxels=n_predicted,
        common_voxels=common,
        truth_ml=n_truth * voxel_ml,
        predicted_ml=n_predicted * voxel_ml,
    )


def _require_masks(truth: np.ndarray, predicted: np.ndarray) -> None:
    if truth.shape != predicted.shape or truth.ndim != 3:
        raise ResultError(
            f"Scoring a segmentation: expected two volumes (z, y, x) of one shape, got {truth.shape} and "
            f"{predicted.shape}."
        )
    if truth.dtype != bool or predicted.dtype != bool:
        raise ResultError(f"Scoring a segmentation: expected bool masks, got {truth.dtype} and {predicted.dtype}.")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def hd95_mm(
    truth: Mask,
    predicted: Mask,
    spacing_mm: Spacing,
    *,
    definition: Definition = "max",
    empty: EmptyPolicy = "nan",
    percentile: float = 95,
) -> float:
    """Return a percentile of the distances between the surfaces of two masks, in mm.

    A surface is the voxels of a mask with one of six neighbours outside of it; the edge of the volume counts as
    outside. Distances are Euclidean between voxel centres, never squared.

    Args:
        truth: bool ``(z, y, x)``.
        predicted: likewise.
        spacing_mm: (z, y, x).
        definition: ``max`` takes the percentile of each direction and then the larger (MONAI, DeepMind's
            surface-distance without its area weights); ``pooled`` one percentile over both (medpy).
        empty: with just one empty mask ``nan``, ``inf`` or ``diagonal`` (of the volume, in mm). With both empty
            ``nan`` gives NaN and the others 0.
        percentile: 100 for the Hausdorff distance itself.

    Raises:
        ResultError: shapes, types, spacing, definition or policy are wrong.

    Examples:
        >>> one = np.zeros((1, 1, 5), bool); other = one.copy()
        >>> one[0, 0, 0] = other[0, 0, 3] = True
        >>> hd95_mm(one, other, (1.0, 1.0, 1.0))
        3.0
    """
    _require_masks(truth, predicted)
    _require_options(spacing_mm, definition, empty)
    if not truth.any() or not predicted.any():
        is_both = not truth.any() and not predicted.any()
        return _of_empty(truth.shape, spacing_mm, empty, is_both=is_both)
    box = _bounding_box(truth | predicted)
    there, back = surface_distances_mm(truth[box], predicted[box], spacing_mm)
    if definition == "pooled":
        return float(np.percentile(np.concatenate([there, back]), percentile))
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def _require_options(spacing_mm: Spacing, definition: str, empty: str) -> None:
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ResultError(f"Measuring surface distances: spacing of {spacing_mm} mm (z, y, x) makes no sense.")
    if definition not in DEFINITIONS or empty not in EMPTY_POLICIES:
        raise ResultError(
            f"Measuring surface distances: definition {definition!r} of {', '.join(DEFINITIONS)}, "
            f"policy {empty!r} of {', '.join(EMPTY_POLICIES)}."
        )


def _of_empty(shape: tuple[int, ...], spacing_mm: Spacing, empty: EmptyPolicy, *, is_both: bool) -> float:
    if empty == "nan":
        return math.nan
    if is_both:
        return 0.0
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(shape, spacing_mm, strict=True)))
    return math.inf if empty == "inf" else diagonal


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the box of a mask that is not empty."""
    sides = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        sides.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(sides)


def surface_distances_mm(
    truth: Mask, predicted: Mask, spacing_mm: Spacing
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return for each surface voxel of `predicted` the distance to the truth's surface, and the other way round.

    Neither mask may be empty.
    """
    from scipy.ndimage import distance_transform_edt

    surface_truth, surface_predicted = _surface(truth), _surface(predicted)
    to_truth = distance_transform_edt(~surface_truth, sampling=spacing_mm)
    to_predicted = distance_transform_edt(~surface_predicted, sampling=spacing_mm)
    return to_truth[surface_predicted], to_predicted[surface_truth]


def _surface(mask: Mask) -> Mask:
    from scipy.ndimage import binary_erosion

    surface: Mask = mask & ~binary_erosion(mask)
    return surface


def false_volumes_ml(truth: Mask, predicted: Mask, spacing_mm: Spacing) -> tuple[float, float]:
    """Return autoPET's false-positive and false-negative volume.

    The volume of predicted components (18-connected) that touch no voxel of the truth, and of components of the
    truth that touch no predicted voxel (``val_script.py`` of the challenge).

    Examples:
        >>> truth = np.zeros((1, 1, 9), bool); truth[0, 0, :3] = True
        >>> predicted = np.zeros_like(truth); predicted[0, 0, 5:7] = True
        >>> false_volumes_ml(truth, predicted, (10.0, 10.0, 10.0))
        (2.0, 3.0)
    """
    _require_masks(truth, predicted)
    voxel_ml = math.prod(spacing_mm) / 1000
    return _untouched(predicted, truth) * voxel_ml, _untouched(truth, predicted) * voxel_ml


def _untouched(components_of: Mask, other: Mask) -> int:
    """Count the voxels of components that share none with `other`."""
    from scipy.ndimage import generate_binary_structure, label

    if not components_of.any():
        return 0
    box = _bounding_box(components_of)
    labelled, n_components = label(components_of[box], structure=generate_binary_structure(3, 2))
    sizes = np.bincount(labelled.ravel(), minlength=n_components + 1)
    sizes[np.unique(labelled[other[box]])] = 0
    return int(sizes[1:].sum())


def aggregated_dice(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return HECKTOR's aggregated Dice of one class: ``2 sum(common) / sum(truth + predicted)`` over all cases.

    Counts are weighted by the voxel's volume, so that cases of unlike spacing add up; a class that is absent and
    not predicted adds nothing, rather than NaN.

    Args:
        rows: one a case, with the fields of `ClassScore`.

    Examples:
        >>> case = {"truth_voxels": 10, "predicted_voxels": 10, "common_voxels": 8, "truth_ml": 10, "predicted_ml": 10}
        >>> absent = {"truth_voxels": 0, "predicted_voxels": 0, "common_voxels": 0, "truth_ml": 0, "predicted_ml": 0}
        >>> aggregated_dice([case, absent])
        0.8
    """
    common = both = 0.0
    for row in rows:
        voxels, volume_ml = row["truth_voxels"] + row["predicted_voxels"], row["truth_ml"] + row["predicted_ml"]
        common += row["common_voxels"] * (volume_ml / voxels if voxels else 0)
        both += volume_ml
    return _ratio(2 * common, both)


def mean_over_cases(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Average one metric over classes, then over cases; NaN and infinity are left out and counted.

    Args:
        rows: one a case and class, with ``case_id``, ``class`` and the metric.
        name: of the metric.

    Returns:
        ``mean`` (of each case's mean over its classes that have a value), ``per_class`` (mean over cases),
        ``n_valid`` and ``n_total`` (case-class pairs), and both per class.

    Examples:
        >>> rows = [{"case_id": "a", "class": "x", "dice": 1.0}, {"case_id": "a", "class": "y", "dice": 0.5},
        ...         {"case_id": "b", "class": "x", "dice": 0.5}, {"case_id": "b", "class": "y", "dice": math.nan}]
        >>> summary = mean_over_cases(rows, "dice")
        >>> summary["mean"], summary["per_class"], summary["n_valid"], summary["n_total"]
        (0.625, {'x': 0.75, 'y': 0.5}, 3, 4)
    """
    by_case, by_class = _grouped(rows, "case_id", name), _grouped(rows, "class", name)
    finite = {key: [value for value in values if math.isfinite(value)] for key, values in by_class.items()}
    of_cases = [_mean([value for value in values if math.isfinite(value)]) for values in by_case.values()]
    return {
        "mean": _mean([value for value in of_cases if math.isfinite(value)]),
        "per_class": {key: _mean(values) for key, values in finite.items()},
        "n_valid": sum(len(values) for values in finite.values()),
        "n_total": len(rows),
        "n_valid_per_class": {key: len(values) for key, values in finite.items()},
        "n_total_per_class": {key: len(values) for key, values in by_class.items()},
    }


def _grouped(rows: Sequence[Mapping[str, Any]], key: str, name: str) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        value = row[name]
        groups.setdefault(str(row[key]), []).append(math.nan if value is None else float(value))
    return groups


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
