"""False volumes of autoPET and aggregated Dice of HECKTOR, by toy cases, one by one, and SimpleITK."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.lesions import (
    PatientOverlap,
    aggregate_dice,
    aggregate_dice_of_classes,
    compute_false_volumes,
    compute_patient_overlaps,
)
from wsi_dino.evaluation.segmentation import Overlap, compute_overlap

SPACING = (3.0, 2.0, 2.0)  # 0.012 ml a voxel


def test_the_toy_case_of_autopet() -> None:
    """Two blobs of 10 and 5 voxels; half of the first is found, and an island of 4 is not there."""
    truth, predicted = np.zeros((3, 12, 12), bool), np.zeros((3, 12, 12), bool)
    truth[1, 1, 1:11], truth[1, 5, 1:6] = True, True
    predicted[1, 1, 1:6], predicted[1, 9, 3:7] = True, True
    found = compute_false_volumes(truth, predicted, SPACING)
    assert found.false_negative_ml == pytest.approx(0.06)
    assert found.false_positive_ml == pytest.approx(0.048)
    assert found.dice == pytest.approx(10 / 24)


@pytest.mark.parametrize(
    ("step", "joined"), [((0, 0, 1), True), ((0, 1, 1), True), ((1, 0, 1), True), ((1, 1, 1), False)]
)
def test_lesions_join_by_faces_and_edges_not_by_corners(step: tuple[int, int, int], joined: bool) -> None:
    """A voxel beside a found one belongs to its lesion, or is one that was missed."""
    truth = np.zeros((4, 4, 4), bool)
    truth[1, 1, 1] = truth[tuple(np.add((1, 1, 1), step))] = True
    predicted = np.zeros_like(truth)
    predicted[1, 1, 1] = True
    found = compute_false_volumes(truth, predicted, SPACING)
    assert found.false_negative_ml == pytest.approx(0.0 if joined else 0.012)
    assert found.false_positive_ml == 0.0


def test_empty_masks_of_autopet() -> None:
    none, some = np.zeros((2, 3, 3), bool), np.ones((2, 3, 3), bool)
    both = compute_false_volumes(none, none, SPACING)
    assert math.isnan(both.dice)
    assert (both.false_positive_ml, both.false_negative_ml) == (0.0, 0.0)
    without_lesions = compute_false_volumes(none, some, SPACING)
    assert (without_lesions.dice, without_lesions.false_positive_ml) == (0.0, pytest.approx(18 * 0.012))
    missed = compute_false_volumes(some, none, SPACING)
    assert (missed.false_negative_ml, missed.false_positive_ml) == (pytest.approx(18 * 0.012), 0.0)


def _flood(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Lesions by walking from voxel to voxel; 18 neighbours."""
    steps = [s for s in np.ndindex(3, 3, 3) if 0 < sum(abs(i - 1) for i in s) < 3]
    left = set(map(tuple, np.argwhere(mask).tolist()))
    lesions = []
    while left:
        edge = [left.pop()]
        lesion = set(edge)
        while edge:
            here = edge.pop()
            near = {tuple(a + b - 1 for a, b in zip(here, step, strict=True)) for step in steps} & left
            left -= near
            lesion |= near
            edge += near
        lesions.append(lesion)
    return lesions


@pytest.mark.parametrize("seed", range(10))
def test_false_volumes_are_those_of_walking(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = (random.random((6, 8, 7)) < share for share in (0.08, 0.05 + 0.01 * seed))
    found = compute_false_volumes(truth, predicted, SPACING)
    for mask, other, volume in (
        (truth, predicted, found.false_negative_ml),
        (predicted, truth, found.false_positive_ml),
    ):
        lone = sum(len(lesion) for lesion in _flood(mask) if not any(other[voxel] for voxel in lesion))
        assert volume == pytest.approx(0.012 * lone)


@pytest.mark.parametrize("seed", range(3))
def test_false_volumes_are_those_of_cc3d(seed: int) -> None:
    """The library that autoPET's own program counts with."""
    cc3d = pytest.importorskip("cc3d", reason="connected-components-3d is not installed")
    random = np.random.default_rng(seed)
    truth, predicted = (random.random((20, 20, 20)) < 0.06 for _ in range(2))
    found = compute_false_volumes(truth, predicted, SPACING)
    for mask, other, volume in (
        (truth, predicted, found.false_negative_ml),
        (predicted, truth, found.false_positive_ml),
    ):
        labels = cc3d.connected_components(mask.astype(np.uint8), connectivity=18)
        lone = sum((labels == i).sum() for i in range(1, labels.max() + 1) if not other[labels == i].any())
        assert volume == pytest.approx(0.012 * lone)


def test_lesions_need_three_axes() -> None:
    with pytest.raises(ResultError, match="three axes"):
        compute_false_volumes(np.zeros((4, 4), bool), np.zeros((4, 4), bool), (1, 1, 1))


# HECKTOR ----------------------------------------------------------------------------------------
def _hecktor_toy() -> list[dict[str, PatientOverlap]]:
    """Patient 1: GTVp 10, predicted 10, overlap 8; no GTVn, predicted 2. Patient 2: GTVn 20, 20, overlap 10."""
    first, first_predicted = np.zeros((1, 1, 40), np.uint8), np.zeros((1, 1, 40), np.uint8)
    first[..., 0:10], first_predicted[..., 2:12], first_predicted[..., 30:32] = 1, 1, 2
    second, second_predicted = np.zeros((1, 1, 40), np.uint8), np.zeros((1, 1, 40), np.uint8)
    second[..., 0:20], second_predicted[..., 10:30] = 2, 2
    labels = {"GTVp": 1, "GTVn": 2}
    pairs = ((first, first_predicted), (second, second_predicted))
    return [compute_patient_overlaps(*pair, (2, 2, 2), labels) for pair in pairs]


def test_the_toy_case_of_hecktor() -> None:
    found = aggregate_dice_of_classes(_hecktor_toy())
    assert found == pytest.approx({"GTVp": 0.8, "GTVn": 20 / 42, "mean": 0.6381}, abs=5e-5)


def test_patients_count_by_volume_not_by_voxels() -> None:
    """One of coarse voxels, all found; one of as many fine ones, all missed."""
    coarse, fine = PatientOverlap(Overlap(10, 0, 0), 0.3), PatientOverlap(Overlap(0, 0, 10), 0.1)
    # shared 2 * 10 * 0.3 = 6; whole 6 + 10 * 0.1
    assert aggregate_dice([coarse, fine]) == pytest.approx(6 / 7)


@pytest.mark.parametrize("seed", range(4))
def test_aggregate_is_that_of_the_challenges_formula(seed: int) -> None:
    """Overlap from SimpleITK's Dice and volumes, as the evaluation does, where that is defined."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with the extra 'tiatoolbox'")
    random = np.random.default_rng(seed)
    shared = whole = 0.0
    patients = []
    for spacing in ((1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (2.0, 2.0, 2.0)):
        truth, predicted = (random.random((6, 7, 8)) < 0.3 for _ in range(2))
        images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (truth, predicted)]
        measured = sitk.LabelOverlapMeasuresImageFilter()
        measured.Execute(*images)
        volumes = (truth.sum() + predicted.sum()) * math.prod(spacing)
        shared += measured.GetDiceCoefficient(1) * volumes / 2
        whole += volumes
        patients.append(PatientOverlap(compute_overlap(truth, predicted), math.prod(spacing) / 1000))
    assert aggregate_dice(patients) == pytest.approx(2 * shared / whole)


def test_absent_everywhere_is_not_defined() -> None:
    assert math.isnan(aggregate_dice([PatientOverlap(Overlap(0, 0, 0), 0.1)]))
    assert math.isnan(aggregate_dice([]))
    with pytest.raises(ResultError, match="at least one patient"):
        aggregate_dice_of_classes([])
    toy = _hecktor_toy()
    with pytest.raises(ResultError, match="same classes"):
        aggregate_dice_of_classes([toy[0], {"GTVp": toy[1]["GTVp"]}])


def test_values_that_are_no_class_are_refused() -> None:
    truth, predicted = np.zeros((2, 2, 2), np.uint8), np.full((2, 2, 2), 3, np.uint8)
    with pytest.raises(ResultError, match=r"values \[3\]"):
        compute_patient_overlaps(truth, predicted, (1, 1, 1), {"GTVp": 1, "GTVn": 2})
    with pytest.raises(ResultError, match="whole numbers, got float64"):
        compute_patient_overlaps(truth, predicted / 3, (1, 1, 1), {"GTVp": 1})
