"""Figures of merit of segmentation masks; each convention where masks are empty has a name of its own.

Two Dice columns: ``dice_nn`` is 0/0 (NaN) when truth and prediction are both empty, as nnU-Net counts; ``dice_1`` is 1
there. Where only one is empty, both are 0. Distances are in millimetres between centres of surface voxels, so there is
no distance without a spacing. Sets with other conventions: autoPET (false volumes of whole lesions) and HECKTOR
(aggregated Dice). A mean is never given without how many patients it is of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from wsi_dino.errors import ConfigError, ResultError

Definition = Literal["max", "pooled"]
EmptyPolicy = Literal["nan", "inf", "image_diagonal"]
_Box = tuple[slice, ...]
_NAN = float("nan")


def check_masks(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two masks as bool.

    Raises:
        ResultError: their shapes differ, or one is neither bool nor whole numbers of 0 and 1: scores are no mask,
            and of a label map one label must be chosen.
    """
    masks = {"truth": np.asarray(truth), "prediction": np.asarray(predicted)}
    if masks["truth"].shape != masks["prediction"].shape:
        shapes = " and ".join(str(mask.shape) for mask in masks.values())
        raise ResultError(f"Comparing masks: truth and prediction must have one shape, got {shapes}.")
    for name, mask in masks.items():
        if mask.dtype != bool and not (mask.dtype.kind in "iu" and _is_binary(mask)):
            found = mask.dtype if mask.dtype.kind not in "iu" else f"values {mask.min()} to {mask.max()}"
            raise ResultError(f"Comparing masks: the {name} must hold True and False, or 0 and 1, got {found}.")
    return masks["truth"].astype(bool, copy=False), masks["prediction"].astype(bool, copy=False)


def _is_binary(mask: np.ndarray) -> bool:
    return mask.size == 0 or (mask.min() >= 0 and mask.max() <= 1)


def check_spacing(spacing_mm: Sequence[float], n_axes: int) -> tuple[float, ...]:
    """Return the spacing, one positive number for each axis.

    Raises:
        ConfigError: it is not that.
    """
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != n_axes or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ConfigError(
            f"Comparing masks: spacing must be {n_axes} positive numbers in mm, one an axis, got {spacing}."
        )
    return spacing


# overlap ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Overlap:
    """Voxels of a truth and a prediction.

    Attributes:
        tp, fp, fn: in both, in the prediction alone, in the truth alone.
    """

    tp: int
    fp: int
    fn: int

    @property
    def dice_nn(self) -> float:
        """Dice, NaN when both masks are empty (nnU-Net's convention).

        Examples:
            >>> Overlap(8, 2, 2).dice_nn, Overlap(0, 3, 0).dice_nn, Overlap(0, 0, 0).dice_nn
            (0.8, 0.0, nan)
        """
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def dice_1(self) -> float:
        """Dice, 1 when both masks are empty."""
        return 1.0 if self.tp + self.fp + self.fn == 0 else self.dice_nn

    @property
    def precision(self) -> float:
        """Share of the prediction that is right; NaN when it is empty."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def precision_0(self) -> float:
        """The same, 0 when the prediction is empty though the truth is not; NaN only when both are."""
        return 0.0 if self.tp + self.fp == 0 and self.fn else self.precision

    @property
    def recall(self) -> float:
        """Share of the truth that was found; NaN when it is empty."""
        return _ratio(self.tp, self.tp + self.fn)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else _NAN


def compute_overlap(truth: np.ndarray, predicted: np.ndarray) -> Overlap:
    """Count voxels of two masks of one shape.

    Raises:
        ResultError: shapes differ, or one is no mask.
    """
    truth, predicted = check_masks(truth, predicted)
    n_truth, n_predicted = np.count_nonzero(truth), np.count_nonzero(predicted)
    tp = int(np.count_nonzero(truth & predicted))
    return Overlap(tp, int(n_predicted) - tp, int(n_truth) - tp)


# distances --------------------------------------------------------------------------------------
def compute_hd95_mm(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    definition: Definition = "max",
    empty: EmptyPolicy = "nan",
    percentile: float = 95,
) -> float:
    """Return the 95th percentile of the distances between two surfaces, in mm.

    The surface of a mask are its voxels with a face to the outside (the image's border is outside); distances are
    between voxel centres. As MONAI and medpy, with linear interpolation of percentiles.

    Args:
        truth: mask of any number of axes.
        predicted: mask of the same shape.
        spacing_mm: size of a voxel along each axis of the arrays, in their order.
        definition: ``max`` of the percentiles of the two directions (MONAI), or the percentile of both directions
            ``pooled`` (medpy).
        empty: what counts when one mask is empty and the other is not: ``nan``, ``inf``, or ``image_diagonal``,
            which no distance in the image exceeds. Both empty: NaN, whatever is chosen.
        percentile: 100 gives the Hausdorff distance.

    Raises:
        ResultError: shapes differ, or one is no mask.
        ConfigError: spacing, definition, policy or percentile is not one.

    Examples:
        >>> truth, predicted = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
        >>> truth[0, 0] = predicted[0, 3] = True
        >>> compute_hd95_mm(truth, predicted, (5.0, 1.0))
        3.0
    """
    truth, predicted = check_masks(truth, predicted)
    spacing = check_spacing(spacing_mm, truth.ndim)
    _check_choices(definition, empty, percentile)
    surfaces = [surface_points_mm(mask, spacing) for mask in (truth, predicted)]
    if any(len(points) == 0 for points in surfaces):
        return _distance_of_empty(empty, [len(points) for points in surfaces], truth.shape, spacing)
    ways = _directed_distances(*surfaces)
    if definition == "pooled":
        return float(np.percentile(np.concatenate(ways), percentile))
    return float(max(np.percentile(way, percentile) for way in ways))


def _check_choices(definition: str, empty: str, percentile: float) -> None:
    for name, value, known in (("definition", definition, Definition), ("empty", empty, EmptyPolicy)):
        if value not in get_args(known):
            raise ConfigError(f"Hausdorff distance: {name} must be one of {', '.join(get_args(known))}, got {value!r}.")
    if not 0 < percentile <= 100:
        raise ConfigError(f"Hausdorff distance: the percentile must lie above 0 and at most at 100, got {percentile}.")


def _distance_of_empty(
    empty: EmptyPolicy, n_points: Sequence[int], shape: Sequence[int], spacing_mm: Sequence[float]
) -> float:
    if empty == "nan" or not any(n_points):
        return _NAN
    return math.inf if empty == "inf" else math.hypot(*(n * step for n, step in zip(shape, spacing_mm, strict=True)))


def surface_points_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return centres of the surface voxels of a bool mask, float64 ``(n, n_axes)`` in mm from the first voxel."""
    from scipy.ndimage import binary_erosion

    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, mask.ndim))
    inside = mask[box]
    surface = inside & ~binary_erosion(inside)  # what lies outside the box counts as outside the mask
    first = [side.start for side in box]
    points: np.ndarray = (np.argwhere(surface) + first) * np.asarray(spacing_mm, np.float64)
    return points


def bounding_box(mask: np.ndarray) -> _Box | None:
    """Return the smallest box of slices that holds a mask; None when it is empty.

    Examples:
        >>> bounding_box(np.array([[0, 0, 0], [0, 1, 1]], bool))
        (slice(1, 2, None), slice(1, 3, None))
    """
    box = [slice(0, length) for length in mask.shape]
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        # of the axes that are done only their part is looked at
        found = np.flatnonzero(mask[tuple(box)].any(axis=others))
        if not len(found):
            return None
        box[axis] = slice(int(found[0]), int(found[-1]) + 1)
    return tuple(box)


def _directed_distances(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from each point to the nearest of the other set, both ways.

    A search tree over surface points is 10 to 50 times as fast as a distance transform of the volume, and as exact.
    """
    from scipy.spatial import cKDTree

    # an unbalanced tree: sorted grid points make a balanced one slow to build
    trees = [cKDTree(points, balanced_tree=False, compact_nodes=False) for points in (first, second)]
    return trees[1].query(first)[0], trees[0].query(second)[0]


# one patient ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MaskMetrics:
    """All figures of one mask of one patient; NaN where one is not defined.

    Attributes:
        dice_nn, dice_1, precision, precision_0, recall: see `Overlap`.
        hd95_mm: see `compute_hd95_mm`.
        truth_ml, predicted_ml: volumes.
    """

    dice_nn: float
    dice_1: float
    precision: float
    precision_0: float
    recall: float
    hd95_mm: float
    truth_ml: float
    predicted_ml: float


def compute_mask_metrics(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    definition: Definition = "max",
    empty: EmptyPolicy = "nan",
) -> MaskMetrics:
    """Compute all figures of two masks ``(z, y, x)``; arguments and errors as those of `compute_hd95_mm`."""
    truth, predicted = check_masks(truth, predicted)
    voxel_ml = voxel_volume_ml(spacing_mm, truth.ndim)
    overlap = compute_overlap(truth, predicted)
    return MaskMetrics(
        overlap.dice_nn, overlap.dice_1, overlap.precision, overlap.precision_0, overlap.recall,
        compute_hd95_mm(truth, predicted, spacing_mm, definition=definition, empty=empty),
        (overlap.tp + overlap.fn) * voxel_ml, (overlap.tp + overlap.fp) * voxel_ml,
    )  # fmt: skip


def voxel_volume_ml(spacing_mm: Sequence[float], n_axes: int = 3) -> float:
    """Return the volume of a voxel in ml; a pixel (two axes) counts as 1 mm deep.

    Examples:
        >>> voxel_volume_ml((3.0, 2.0, 2.0))
        0.012
    """
    return math.prod(check_spacing(spacing_mm, n_axes)) / 1000


def check_label_maps(truth: np.ndarray, predicted: np.ndarray) -> None:
    """Check that two maps hold whole numbers.

    Raises:
        ResultError: one does not.
    """
    for name, values in (("truth", truth), ("prediction", predicted)):
        if values.dtype.kind not in "iub":
            raise ResultError(f"Comparing label maps: the {name} must hold whole numbers, got {values.dtype}.")


def compute_label_metrics(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    labels: Iterable[int],
    *,
    definition: Definition = "max",
    empty: EmptyPolicy = "nan",
) -> dict[int, MaskMetrics]:
    """Compute `MaskMetrics` of each label of two label maps.

    Raises:
        ResultError: shapes differ, or a map does not hold whole numbers.
        ConfigError: as `compute_hd95_mm`.
    """
    check_label_maps(truth, predicted)
    return {
        label: compute_mask_metrics(
            truth == label, predicted == label, spacing_mm, definition=definition, empty=empty
        )
        for label in labels
    }  # fmt: skip


# many patients ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class MeanOfValid:
    """A figure over patients.

    Attributes:
        mean, median: of those where it is defined; NaN when it nowhere is. Infinite distances count.
        n_valid: patients where it is defined.
        n_total: all patients.
    """

    mean: float
    median: float
    n_valid: int
    n_total: int


def mean_of_valid(values: Iterable[float]) -> MeanOfValid:
    """Average a figure over patients, leaving out where it is not defined, and say of how many it is.

    Examples:
        >>> mean_of_valid([0.5, float("nan"), 0.7])
        MeanOfValid(mean=0.6, median=0.6, n_valid=2, n_total=3)
    """
    all_values = np.array(list(values), np.float64)
    valid = all_values[~np.isnan(all_values)]
    if not len(valid):
        return MeanOfValid(_NAN, _NAN, 0, len(all_values))
    return MeanOfValid(float(valid.mean()), float(np.median(valid)), len(valid), len(all_values))


def summarise_masks(patients: Iterable[MaskMetrics]) -> dict[str, MeanOfValid]:
    """Average each figure over patients."""
    rows: list[Mapping[str, Any]] = [asdict(patient) for patient in patients]
    return {name: mean_of_valid(row[name] for row in rows) for name in MaskMetrics.__dataclass_fields__}
