"""Segmentation figures of two challenges on PET/CT: false volumes of autoPET, aggregated Dice of HECKTOR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.segmentation import (
    Overlap,
    bounding_box,
    check_label_maps,
    check_masks,
    compute_overlap,
    voxel_volume_ml,
)

_NAN = float("nan")


@dataclass(frozen=True)
class FalseVolumes:
    """Figures of autoPET II of one study.

    Attributes:
        dice: NaN when truth and prediction are both empty; a study without lesions is not ranked by it.
        false_positive_ml: volume of predicted lesions that touch no true voxel.
        false_negative_ml: volume of true lesions that no predicted voxel touches.
    """

    dice: float
    false_positive_ml: float
    false_negative_ml: float


def compute_false_volumes(truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]) -> FalseVolumes:
    """Compute the figures of autoPET II (its ``val_script.py``) of one study.

    Lesions are connected by faces and edges, not by corners alone (connectivity 18).

    Args:
        truth: mask ``(z, y, x)``.
        predicted: mask of the same shape.
        spacing_mm: size of a voxel, in the order of the axes.

    Raises:
        ResultError: shapes differ, one is no mask, or they have not three axes.
        ConfigError: spacing is none.

    Examples:
        >>> truth, predicted = np.zeros((1, 1, 9), bool), np.zeros((1, 1, 9), bool)
        >>> truth[..., 0:4] = truth[..., 5] = predicted[..., 2:4] = predicted[..., 7:] = True
        >>> compute_false_volumes(truth, predicted, (10, 10, 10))
        FalseVolumes(dice=0.444..., false_positive_ml=2.0, false_negative_ml=1.0)
    """
    truth, predicted = check_masks(truth, predicted)
    if truth.ndim != 3:
        raise ResultError(f"Comparing lesions: masks must have three axes, got the shape {truth.shape}.")
    voxel_ml = voxel_volume_ml(spacing_mm)
    return FalseVolumes(
        compute_overlap(truth, predicted).dice_nn,
        _voxels_of_lone_lesions(predicted, truth) * voxel_ml,
        _voxels_of_lone_lesions(truth, predicted) * voxel_ml,
    )


def _voxels_of_lone_lesions(mask: np.ndarray, other: np.ndarray) -> int:
    """Count voxels of the lesions of a mask that have none in common with the other."""
    from scipy.ndimage import generate_binary_structure, label

    box = bounding_box(mask)
    if box is None:
        return 0
    lesions, n_lesions = label(mask[box], structure=generate_binary_structure(3, 2))
    sizes = np.bincount(lesions.ravel(), minlength=n_lesions + 1)
    sizes[np.unique(lesions[other[box]])] = 0
    return int(sizes[1:].sum())


@dataclass(frozen=True)
class PatientOverlap:
    """Overlap of one class in one patient, with the volume of a voxel."""

    overlap: Overlap
    voxel_ml: float


def compute_patient_overlaps(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], labels: Mapping[str, int]
) -> dict[str, PatientOverlap]:
    """Return the overlap of each class of two label maps, for `aggregate_dice`.

    Args:
        truth: whole numbers ``(z, y, x)``.
        predicted: the same shape, on the grid of the truth.
        spacing_mm: size of a voxel, in the order of the axes.
        labels: value of each class, as ``{"GTVp": 1, "GTVn": 2}``.

    Raises:
        ResultError: shapes differ, a map does not hold whole numbers, or the prediction has a value that is no class.
    """
    check_label_maps(truth, predicted)
    unknown = set(np.unique(predicted).tolist()) - {0, *labels.values()}
    if unknown:
        raise ResultError(f"Comparing label maps: the prediction has the values {sorted(unknown)}, which are no class.")
    voxel_ml = voxel_volume_ml(spacing_mm, np.ndim(truth))
    return {
        name: PatientOverlap(compute_overlap(truth == label, predicted == label), voxel_ml)
        for name, label in labels.items()
    }


def aggregate_dice(patients: Iterable[PatientOverlap]) -> float:
    """Return the aggregated Dice of HECKTOR 2022 of one class: twice all overlap over all volume, over all patients.

    A patient without the class counts by what was predicted there. NaN when no patient has any of it.

    Examples:
        >>> found, absent = Overlap(10, 10, 10), Overlap(0, 2, 0)
        >>> round(aggregate_dice([PatientOverlap(absent, 0.008), PatientOverlap(found, 0.008)]), 4)
        0.4762
    """
    shared = whole = 0.0
    for patient in patients:
        overlap = patient.overlap
        shared += 2 * overlap.tp * patient.voxel_ml
        whole += (2 * overlap.tp + overlap.fp + overlap.fn) * patient.voxel_ml
    return shared / whole if whole else _NAN


def aggregate_dice_of_classes(patients: Sequence[Mapping[str, PatientOverlap]]) -> dict[str, float]:
    """Return the aggregated Dice of each class, and their ``mean``, by which HECKTOR 2022 ranks.

    Raises:
        ResultError: there is no patient, or patients have other classes than the first.
    """
    if not patients or any(set(patient) != set(patients[0]) for patient in patients):
        raise ResultError("Aggregating Dice: at least one patient is needed, and all with the same classes.")
    each = {name: aggregate_dice(patient[name] for patient in patients) for name in patients[0]}
    return {**each, "mean": float(np.mean(list(each.values())))}
