"""Mask figures against MONAI, SimpleITK and brute force, on random and on degenerate masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from wsi_dino.errors import ConfigError, ResultError
from wsi_dino.evaluation.segmentation import (
    MaskMetrics,
    Overlap,
    bounding_box,
    compute_hd95_mm,
    compute_label_metrics,
    compute_mask_metrics,
    compute_overlap,
    mean_of_valid,
    summarise_masks,
    voxel_volume_ml,
)

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.5, 2.0, 7.0)]


def _blobs(seed: int, shape: tuple[int, ...] = (14, 20, 17), share: float = 0.2) -> np.ndarray:
    """Random smooth masks that touch the border of the image too."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return np.asarray(field > np.quantile(field, 1 - share))


def _noise(seed: int, shape: tuple[int, ...] = (7, 9, 8), share: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def _surface_by_neighbours(mask: np.ndarray) -> np.ndarray:
    """Indices of voxels with a face neighbour outside, one by one."""
    padded = np.pad(mask, 1)
    steps = [sign * step for step in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
    return np.array([i for i in np.argwhere(mask) if not all(padded[tuple(i + 1 + step)] for step in steps)])


def _brute_hd(truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...], q: float, pooled: bool) -> float:
    """All distances between all pairs."""
    distances = cdist(*(_surface_by_neighbours(mask) * spacing for mask in (truth, predicted)))
    ways = [distances.min(1), distances.min(0)]
    return float(np.percentile(np.concatenate(ways), q) if pooled else max(np.percentile(way, q) for way in ways))


# overlap ----------------------------------------------------------------------------------------
def test_both_conventions_of_empty_masks() -> None:
    none, some, other = np.zeros(4, bool), np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
    table = {
        "both empty": (none, none, [math.nan, 1.0, math.nan, math.nan, math.nan]),
        "nothing found": (some, none, [0.0, 0.0, math.nan, 0.0, 0.0]),
        "nothing there": (none, some, [0.0, 0.0, 0.0, 0.0, math.nan]),
        "apart": (some, other, [0.0, 0.0, 0.0, 0.0, 0.0]),
        "equal": (some, some, [1.0, 1.0, 1.0, 1.0, 1.0]),
    }
    for name, (truth, predicted, expected) in table.items():
        overlap = compute_overlap(truth, predicted)
        found = [overlap.dice_nn, overlap.dice_1, overlap.precision, overlap.precision_0, overlap.recall]
        assert found == pytest.approx(expected, nan_ok=True), name


@pytest.mark.parametrize("seed", range(8))
def test_overlap_is_that_of_simpleitk(seed: int) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with the extra 'tiatoolbox'")
    truth, predicted = (_blobs, _noise)[seed % 2](seed), (_blobs, _noise)[seed % 2](seed + 100)
    measured = sitk.LabelOverlapMeasuresImageFilter()
    measured.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (predicted, truth)))
    overlap = compute_overlap(truth, predicted)
    assert overlap.dice_nn == pytest.approx(measured.GetDiceCoefficient(1))
    assert 1 - overlap.recall == pytest.approx(measured.GetFalseNegativeError(1))
    assert 1 - overlap.precision == pytest.approx(measured.GetFalseDiscoveryRate(1))


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.metrics import f1_score, precision_score, recall_score

    truth, predicted = _noise(seed), _noise(seed + 50)
    overlap = compute_overlap(truth.astype(np.uint8), predicted.astype(np.int64))
    for found, score in (
        (overlap.dice_nn, f1_score),
        (overlap.precision, precision_score),
        (overlap.recall, recall_score),
    ):
        assert found == pytest.approx(score(truth.ravel(), predicted.ravel()))


# distances --------------------------------------------------------------------------------------
def test_a_distance_is_not_squared() -> None:
    """Two voxels 3 mm apart: 3, not 9."""
    truth, predicted = np.zeros((3, 3, 8), bool), np.zeros((3, 3, 8), bool)
    truth[1, 1, 1] = predicted[1, 1, 4] = True
    assert compute_hd95_mm(truth, predicted, (1, 1, 1)) == 3
    assert compute_hd95_mm(truth, predicted, (1, 1, 2.5)) == 7.5
    assert compute_hd95_mm(truth.transpose(2, 0, 1), predicted.transpose(2, 0, 1), (2.5, 1, 1)) == 7.5


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pooled", [False, True])
def test_distances_are_those_of_all_pairs(seed: int, spacing: tuple[float, ...], pooled: bool) -> None:
    for make in (_blobs, _noise):
        truth, predicted = make(seed), make(seed + 1000)
        for q in (50, 95, 100):
            found = compute_hd95_mm(truth, predicted, spacing, definition="pooled" if pooled else "max", percentile=q)
            assert found == pytest.approx(_brute_hd(truth, predicted, spacing, q, pooled), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0.02, 0.98))
def test_any_number_of_axes_and_any_density(seed: int, n_axes: int, share: float) -> None:
    shape = (9, 6, 5)[:n_axes]
    truth, predicted = _noise(seed, shape, share), _noise(seed + 1, shape, share)
    spacing = SPACINGS[1][:n_axes]
    if not truth.any() or not predicted.any():
        assert math.isnan(compute_hd95_mm(truth, predicted, spacing))
        return
    for pooled in (False, True):
        found = compute_hd95_mm(truth, predicted, spacing, definition="pooled" if pooled else "max")
        assert found == pytest.approx(_brute_hd(truth, predicted, spacing, 95, pooled), abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_simpleitk(seed: int, spacing: tuple[float, ...]) -> None:
    """Contours and Maurer distance maps, not squared; a margin, since ITK draws no contour at the border."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with the extra 'tiatoolbox'")
    masks = [np.pad(_blobs(s), 2) for s in (seed, seed + 77)]
    contours, maps = [], []
    for mask in masks:
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        contour = sitk.LabelContour(image, fullyConnected=False)
        contours.append(sitk.GetArrayFromImage(contour).astype(bool))
        distance = sitk.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True)
        maps.append(np.abs(sitk.GetArrayFromImage(distance)))
    ways = [maps[1][contours[0]], maps[0][contours[1]]]
    expected = {"max": max(np.percentile(way, 95) for way in ways), "pooled": np.percentile(np.concatenate(ways), 95)}
    for definition, value in expected.items():
        assert compute_hd95_mm(*masks, spacing, definition=definition) == pytest.approx(value, rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.slow
def test_figures_are_those_of_monai() -> None:
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    import torch

    for seed in range(12):
        make = (_blobs, _noise)[seed % 2]
        truth, predicted, spacing = make(seed), make(seed + 31), SPACINGS[seed % 3]
        one_hot = [torch.from_numpy(mask)[None, None] for mask in (predicted, truth)]
        distance = monai.compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=spacing)
        assert compute_hd95_mm(truth, predicted, spacing) == pytest.approx(float(distance), rel=1e-5)
        dice = monai.compute_dice(*one_hot, include_background=True, ignore_empty=False)
        assert compute_overlap(truth, predicted).dice_1 == pytest.approx(float(dice), rel=1e-6)
    empty = torch.zeros(1, 1, 4, 4, 4)
    assert float(monai.compute_dice(empty, empty, ignore_empty=False)) == Overlap(0, 0, 0).dice_1 == 1


@pytest.mark.parametrize("definition", ["max", "pooled"])
def test_equal_masks_are_at_no_distance_and_order_does_not_matter(definition: str) -> None:
    for seed in range(4):
        first, second = _blobs(seed), _blobs(seed + 9)
        assert compute_hd95_mm(first, first, (3, 1, 1), definition=definition) == 0  # type: ignore[arg-type]
        ways = [compute_hd95_mm(a, b, (3, 1, 1), definition=definition) for a, b in ((first, second), (second, first))]  # type: ignore[arg-type]
        assert ways[0] == ways[1]


def test_a_larger_image_around_the_masks_changes_nothing() -> None:
    first, second = np.pad(_blobs(1), 1), np.pad(_blobs(2), 1)
    wide = [np.pad(mask, ((40, 0), (3, 50), (0, 7))) for mask in (first, second)]
    assert compute_hd95_mm(*wide, (2, 1, 1)) == pytest.approx(compute_hd95_mm(first, second, (2, 1, 1)), abs=1e-9)


def test_policies_of_empty_masks() -> None:
    none, some = np.zeros((4, 30, 40), bool), np.zeros((4, 30, 40), bool)
    some[2, 3, 4] = True
    for truth, predicted in ((none, some), (some, none)):
        found = [
            compute_hd95_mm(truth, predicted, (10, 1, 1), empty=policy) for policy in ("nan", "inf", "image_diagonal")
        ]  # type: ignore[arg-type]
        assert math.isnan(found[0])
        assert found[1:] == [math.inf, pytest.approx(math.sqrt(40**2 + 30**2 + 40**2))]
    for policy in ("nan", "inf", "image_diagonal"):
        assert math.isnan(compute_hd95_mm(none, none, (10, 1, 1), empty=policy))  # type: ignore[arg-type]
    # 240 x 240 x 155 voxels of 1 mm, as in brain tumours
    brain = np.zeros((240, 240, 155), bool)
    seen = brain.copy()
    seen[0, 0, 0] = True
    assert compute_hd95_mm(brain, seen, (1, 1, 1), empty="image_diagonal") == pytest.approx(373.13, abs=5e-3)


def test_no_distance_exceeds_the_diagonal_that_stands_for_it() -> None:
    first, second = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    first[0, 0, 0] = second[-1, -1, -1] = True
    missed = compute_hd95_mm(first, np.zeros_like(first), (3, 2, 1), empty="image_diagonal")
    assert compute_hd95_mm(first, second, (3, 2, 1)) < missed


# one patient and many ---------------------------------------------------------------------------
def test_all_figures_of_a_known_mask() -> None:
    truth, predicted = np.zeros((4, 10, 10), bool), np.zeros((4, 10, 10), bool)
    truth[1:3, 2:6, 2:6], predicted[1:3, 2:6, 4:8] = True, True
    found = compute_mask_metrics(truth, predicted, (5.0, 2.0, 2.0))
    # 32 voxels each, 16 shared, 0.02 ml a voxel; the far columns are two voxels of 2 mm off
    assert found == MaskMetrics(0.5, 0.5, 0.5, 0.5, 0.5, 4.0, 0.64, 0.64)
    assert voxel_volume_ml((5.0, 2.0, 2.0)) == 0.02


def test_labels_are_taken_one_by_one() -> None:
    truth = np.zeros((3, 6, 6), np.uint8)
    truth[1, :2], truth[1, 4:] = 1, 2
    predicted = np.where(truth == 2, 0, truth)
    found = compute_label_metrics(truth, predicted, (1, 1, 1), (1, 2, 3), empty="inf")
    assert (found[1].dice_nn, found[2].dice_nn, found[2].hd95_mm) == (1.0, 0.0, math.inf)
    assert math.isnan(found[3].dice_nn)
    assert found[3].dice_1 == 1.0
    for label in (1, 2, 3):
        alone = compute_mask_metrics(truth == label, predicted == label, (1, 1, 1), empty="inf")
        assert repr(found[label]) == repr(alone)


def test_a_mean_says_of_how_many_it_is() -> None:
    none, some = np.zeros((2, 3, 3), bool), np.ones((2, 3, 3), bool)
    patients = [compute_mask_metrics(*pair, (1, 1, 1)) for pair in ((some, some), (none, none), (some, none))]
    summary = summarise_masks(patients)
    assert (summary["dice_nn"].mean, summary["dice_nn"].n_valid, summary["dice_nn"].n_total) == (0.5, 2, 3)
    assert (summary["dice_1"].mean, summary["dice_1"].n_valid) == (pytest.approx(2 / 3), 3)
    assert (summary["hd95_mm"].mean, summary["hd95_mm"].n_valid) == (0.0, 1)
    nothing = mean_of_valid([math.nan])
    assert (math.isnan(nothing.mean), nothing.n_valid, nothing.n_total) == (True, 0, 1)
    assert mean_of_valid([1.0, 2.0, math.inf]).mean == math.inf
    assert mean_of_valid([1.0, 2.0, math.inf]).median == 2.0
    assert mean_of_valid([]).n_total == 0


# wrong input ------------------------------------------------------------------------------------
def test_what_is_no_mask_is_refused() -> None:
    mask = np.zeros((3, 3), bool)
    for wrong, said in (
        (np.full((3, 3), 0.4), "float64"),  # scores
        (np.full((3, 3), np.nan), "float64"),
        (np.full((3, 3), 2), "values 2 to 2"),  # a label map
        (np.full((3, 3), -1), "values -1 to -1"),
        (np.full((3, 3), "1"), "<U1"),
    ):
        with pytest.raises(ResultError, match=said):
            compute_overlap(mask, wrong)
    with pytest.raises(ResultError, match=r"\(3, 3\) and \(3, 4\)"):
        compute_overlap(mask, np.zeros((3, 4), bool))
    with pytest.raises(ResultError, match="truth must hold whole numbers, got float32"):
        compute_label_metrics(mask.astype(np.float32), mask, (1, 1), [1])


def test_wrong_settings_are_refused() -> None:
    mask = np.ones((3, 3), bool)
    for spacing in ((1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, math.nan), (1.0, 1.0, 1.0)):
        with pytest.raises(ConfigError, match="spacing must be 2 positive numbers"):
            compute_hd95_mm(mask, mask, spacing)
    with pytest.raises(ConfigError, match="definition must be one of max, pooled, got 'mean'"):
        compute_hd95_mm(mask, mask, (1, 1), definition="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="empty must be one of nan, inf, image_diagonal"):
        compute_hd95_mm(mask, mask, (1, 1), empty="zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="percentile"):
        compute_hd95_mm(mask, mask, (1, 1), percentile=0)


def test_images_of_no_size_hold_nothing() -> None:
    nothing = np.zeros((0, 4, 4), bool)
    assert bounding_box(nothing) is None
    assert math.isnan(compute_mask_metrics(nothing, nothing, (1, 1, 1)).dice_nn)
    assert bounding_box(np.ones((2, 3), bool)) == (slice(0, 2), slice(0, 3))
