"""Segmentation metrics against MONAI, SimpleITK, brute force and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.segmentation import (
    aggregated_dice,
    false_volumes_ml,
    hd95_mm,
    mean_over_cases,
    score_class,
)

SPACING = (3.0, 0.7, 1.2)


def _random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal((9, 14, 12)), 1.5)
    other = smooth + 0.4 * gaussian_filter(rng.standard_normal(smooth.shape), 1.0)
    cut = np.quantile(smooth, rng.uniform(0.6, 0.97))
    return smooth > cut, other > cut


def _brute_force_hd(truth: np.ndarray, predicted: np.ndarray, percentile: float, pooled: bool) -> float:
    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = mask.copy()
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inner) * np.array(SPACING)

    a, b = surface(truth), surface(predicted)
    apart = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    one, two = apart.min(1), apart.min(0)
    if pooled:
        return float(np.percentile(np.concatenate([one, two]), percentile))
    return float(max(np.percentile(one, percentile), np.percentile(two, percentile)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("percentile", [95, 100])
@pytest.mark.parametrize("definition", ["max", "pooled"])
def test_hd_equals_brute_force(seed: int, percentile: float, definition: str) -> None:
    truth, predicted = _random_pair(seed)
    expected = _brute_force_hd(truth, predicted, percentile, definition == "pooled")
    got = hd95_mm(truth, predicted, SPACING, definition=definition, percentile=percentile)  # type: ignore[arg-type]
    assert got == pytest.approx(expected)


@pytest.mark.slow
def test_dice_and_hd95_equal_monai() -> None:
    from wsi_dino.encoders.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    import torch

    for seed in range(6):
        truth, predicted = _random_pair(seed)
        ours = score_class(truth, predicted, SPACING)
        pair = [torch.from_numpy(mask[None, None]).float() for mask in (predicted, truth)]
        assert ours.dice == pytest.approx(float(metrics.compute_dice(*pair)))
        hd = metrics.compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=list(SPACING))
        assert ours.hd95_mm == pytest.approx(float(hd), rel=1e-5)


def test_overlap_and_hausdorff_equal_simpleitk() -> None:
    sitk = pytest.importorskip("SimpleITK")
    for seed in range(6):
        masks = _random_pair(seed)
        images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
        for image in images:
            image.SetSpacing(SPACING[::-1])
        overlap, hausdorff = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
        overlap.Execute(*images)
        hausdorff.Execute(*images)
        assert score_class(*masks, SPACING).dice == pytest.approx(overlap.GetDiceCoefficient())
        # ITK measures from whole masks, not surfaces: the largest distance is the same for masks not inside another
        assert hd95_mm(*masks, SPACING, percentile=100) >= hausdorff.GetHausdorffDistance() - 1e-9


def test_a_squared_distance_is_never_reported() -> None:
    one, other = np.zeros((1, 1, 8), bool), np.zeros((1, 1, 8), bool)
    one[0, 0, 1] = other[0, 0, 4] = True
    assert hd95_mm(one, other, (1, 1, 1)) == 3.0
    assert hd95_mm(one, other, (1, 1, 2.5)) == 7.5


@pytest.mark.parametrize(
    ("has_truth", "has_prediction", "dice", "dice_1", "precision", "recall", "hd"),
    [
        (False, False, math.nan, 1.0, math.nan, math.nan, {"nan": math.nan, "inf": 0.0, "diagonal": 0.0}),
        (True, False, 0.0, 0.0, math.nan, 0.0, {"nan": math.nan, "inf": math.inf, "diagonal": 13.0}),
        (False, True, 0.0, 0.0, 0.0, math.nan, {"nan": math.nan, "inf": math.inf, "diagonal": 13.0}),
    ],
)
def test_empty_masks_follow_the_named_convention(
    has_truth: bool, has_prediction: bool, dice: float, dice_1: float, precision: float, recall: float, hd: dict
) -> None:
    truth, predicted = np.zeros((3, 4, 6), bool), np.zeros((3, 4, 6), bool)
    truth[1, 1, 1], predicted[2, 2, 2] = has_truth, has_prediction
    for policy, distance in hd.items():
        score = score_class(truth, predicted, (1, 1, 2), empty=policy)
        assert [score.dice, score.dice_both_empty_1, score.precision, score.recall, score.hd95_mm] == pytest.approx(
            [dice, dice_1, precision, recall, distance], nan_ok=True
        )


def test_false_volumes_of_the_autopet_toy() -> None:
    """Truth of two blobs (10 and 5 voxels), half of the first found, and an island of 4 voxels elsewhere."""
    truth, predicted = np.zeros((4, 12, 12), bool), np.zeros((4, 12, 12), bool)
    truth[0, 0, :10] = truth[0, 5, :5] = True
    predicted[0, 0, :5] = predicted[3, 8, 4:8] = True
    spacing = (1.0, 1.0, 12.0)  # 0.012 ml
    false_positive, false_negative = false_volumes_ml(truth, predicted, spacing)
    assert (false_positive, false_negative) == pytest.approx((0.048, 0.06))
    assert score_class(truth, predicted, spacing).dice == pytest.approx(10 / 24)


def test_components_are_18_connected() -> None:
    """Two voxels that share an edge are one lesion, two that share a corner are two."""
    for step, missed in (((1, 1, 0), 0), ((1, 1, 1), 1)):
        truth = np.zeros((3, 3, 3), bool)
        truth[0, 0, 0] = truth[step] = True
        predicted = np.zeros_like(truth)
        predicted[0, 0, 0] = True
        assert false_volumes_ml(truth, predicted, (10, 10, 10))[1] == missed


def _row(truth: int, predicted: int, common: int, voxel_ml: float = 1.0) -> dict[str, float]:
    return {
        "truth_voxels": truth, "predicted_voxels": predicted, "common_voxels": common,
        "truth_ml": truth * voxel_ml, "predicted_ml": predicted * voxel_ml,
    }  # fmt: skip


def test_aggregated_dice_of_the_hecktor_toy() -> None:
    primary = aggregated_dice([_row(10, 10, 8), _row(0, 0, 0)])
    nodes = aggregated_dice([_row(0, 2, 0), _row(20, 20, 10)])
    assert (primary, nodes) == pytest.approx((0.8, 20 / 42))
    assert (primary + nodes) / 2 == pytest.approx(0.6381, abs=1e-4)


def test_aggregated_dice_adds_volumes_not_voxels() -> None:
    coarse, fine = _row(10, 10, 10, 8.0), _row(80, 80, 0, 1.0)
    assert aggregated_dice([coarse, fine]) == pytest.approx(0.5)


def test_a_mean_says_how_many_values_it_has() -> None:
    rows = [
        {"case_id": "a", "class": "x", "hd95_mm": 2.0},
        {"case_id": "a", "class": "y", "hd95_mm": math.inf},
        {"case_id": "b", "class": "x", "hd95_mm": math.nan},
        {"case_id": "b", "class": "y", "hd95_mm": 4.0},
    ]
    summary = mean_over_cases(rows, "hd95_mm")
    assert summary["mean"] == 3.0
    assert (summary["n_valid"], summary["n_total"]) == (2, 4)
    assert summary["n_valid_per_class"] == {"x": 1, "y": 1}


def test_masks_of_other_shape_or_type_are_refused() -> None:
    mask = np.zeros((2, 2, 2), bool)
    with pytest.raises(ResultError, match="one shape"):
        score_class(mask, mask[:1], SPACING)
    with pytest.raises(ResultError, match="bool masks"):
        score_class(mask, mask.astype(np.uint8), SPACING)  # type: ignore[arg-type]
    with pytest.raises(ResultError, match="spacing"):
        hd95_mm(mask, mask, (0, 1, 1))
