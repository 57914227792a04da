"""VOI and adapted Rand error against scikit-image, waterz, brute force and vectors worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error
from skimage.metrics import variation_of_information as skimage_voi

from wsi_dino.errors import ConfigError, ResultError
from wsi_dino.evaluation.neuron_metrics import (
    CREMI_IGNORED,
    AdaptedRand,
    VariationOfInformation,
    adapted_rand,
    count_contingency,
    cremi_score,
    variation_of_information,
)


def _ids(text: str) -> np.ndarray:
    return np.array([int(digit) for digit in text.replace(" ", "")])


@pytest.mark.parametrize(
    ("truth", "found", "ignored", "split", "merge", "error", "uncorrected", "score"),
    [
        ("1111 2222", "1122 3333", (0,), 0.5, 0, 0.2, 0.142857, 0.316228),
        ("1111 2222", "5555 5555", (0,), 0, 1, 0.4, 0.333333, 0.632456),
        ("1111 2222", "1112 2222", (0,), 0.405639, 0.451205, 0.28, 0.212121, 0.489813),
        ("00 1111 2222", "78 1122 3333", (0,), 0.5, 0, 0.2, 0.142857, 0.316228),
        ("00 1111 2222", "78 1122 3333", (), 0.6, 0, 0.238095, 0.161290, 0.377964),
    ],
)
def test_vectors(
    truth: str, found: str, ignored: tuple[int, ...],
    split: float, merge: float, error: float, uncorrected: float, score: float,
) -> None:  # fmt: skip
    table = count_contingency(_ids(truth), _ids(found), ignored)
    voi, rand = variation_of_information(table), adapted_rand(table)
    assert (voi.split, voi.merge, voi.sum) == pytest.approx((split, merge, split + merge), abs=1e-6)
    assert rand.error == pytest.approx(error, abs=1e-6)
    assert adapted_rand(table, corrected=False).error == pytest.approx(uncorrected, abs=1e-6)
    assert cremi_score(voi, rand) == pytest.approx(score, abs=1e-6)


def _pair(seed: int, shape: tuple[int, ...] = (4, 30, 31)) -> tuple[np.ndarray, np.ndarray]:
    """Neurons in blocks, and a segmentation that splits, merges and errs here and there."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 9, [-(-length // 6) for length in shape])
    truth = np.kron(coarse, np.ones((6,) * len(shape), int))[tuple(slice(0, length) for length in shape)]
    found = truth * 3 + (np.arange(shape[-1]) > shape[-1] // 2)
    found[found == 6] = 9
    wrong = random.random(shape) < 0.05
    return truth.astype(np.uint64), np.where(wrong, random.integers(0, 30, shape), found).astype(np.uint64)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ignored", [(), (0,), (0, 3)])
def test_figures_are_those_of_scikit_image(seed: int, ignored: tuple[int, ...]) -> None:
    truth, found = _pair(seed)
    table = count_contingency(truth, found, ignored)
    voi, rand = variation_of_information(table), adapted_rand(table)
    as_int = truth.astype(np.int64), found.astype(np.int64)
    assert (voi.split, voi.merge) == pytest.approx(skimage_voi(*as_int, ignore_labels=ignored), abs=1e-9)
    # scikit-image's second and third value are recall and precision in the usual sense
    error, recall, precision = adapted_rand_error(*as_int, ignore_labels=ignored)
    assert (rand.error, rand.precision, rand.recall) == pytest.approx((error, precision, recall), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_waterz(seed: int) -> None:
    waterz = pytest.importorskip("waterz", reason="waterz is not installed")
    truth, found = _pair(seed)
    told = waterz.evaluate(found, truth)
    table = count_contingency(truth, found)
    voi, rand = variation_of_information(table), adapted_rand(table, corrected=False)
    assert (voi.split, voi.merge) == pytest.approx((told["voi_split"], told["voi_merge"]), abs=1e-6)
    assert (rand.recall, rand.precision) == pytest.approx((told["rand_split"], told["rand_merge"]), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, (2, 12), elements=st.integers(0, 3)))
def test_rand_is_that_of_counting_pairs(ids: np.ndarray) -> None:
    """Every pair of different voxels, one by one; ids 0 of the truth left out."""
    truth, found = ids[:, ids[0] != 0]
    one, other = np.triu_indices(len(truth), 1)
    in_truth, in_found = truth[one] == truth[other], found[one] == found[other]
    shared = (in_truth & in_found).sum()
    rand = adapted_rand(count_contingency(*ids))
    whole = in_truth.sum() + in_found.sum()
    assert rand.error == pytest.approx(1 - 2 * shared / whole if whole else math.nan, nan_ok=True)
    assert rand.precision == pytest.approx(shared / in_found.sum() if in_found.any() else math.nan, nan_ok=True)
    assert rand.recall == pytest.approx(shared / in_truth.sum() if in_truth.any() else math.nan, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint16, (3, 4, 5), elements=st.integers(0, 5)), st.permutations(range(6)))
def test_names_of_objects_do_not_matter(truth: np.ndarray, names: list[int]) -> None:
    found = np.array(names, np.uint64)[truth] * 2**40 + 17
    table = count_contingency(truth, found, ())
    assert variation_of_information(table).sum == 0
    assert adapted_rand(table).error == pytest.approx(0)


def test_swapping_sides_swaps_split_and_merge() -> None:
    truth, found = _pair(1)
    ways = [count_contingency(*pair, ()) for pair in ((truth, found), (found, truth))]
    voi = [variation_of_information(table) for table in ways]
    rand = [adapted_rand(table) for table in ways]
    assert (voi[0].split, voi[0].merge) == pytest.approx((voi[1].merge, voi[1].split))
    assert (rand[0].precision, rand[0].recall) == pytest.approx((rand[1].recall, rand[1].precision))


def test_only_true_ids_are_ignored() -> None:
    """A segmentation that calls a neuron 0 has not left it out."""
    truth, found = _ids("1111 2222"), _ids("0000 2222")
    assert variation_of_information(count_contingency(truth, found)).sum == 0
    assert count_contingency(truth, found).n_voxels == 8
    assert count_contingency(found, truth).n_voxels == 4


def test_the_unlabelled_id_of_cremi_is_ignored_as_uint64() -> None:
    truth = np.array([2**64 - 1, 2**64 - 1, 0, 5, 5, 6], np.uint64)
    found = np.array([1, 2, 3, 4, 4, 4], np.uint64)
    assert count_contingency(truth, found).n_voxels == 5
    assert count_contingency(truth, found, CREMI_IGNORED).n_voxels == 3
    assert count_contingency(truth[3:].astype(np.uint8), found[3:], CREMI_IGNORED).n_voxels == 3
    with pytest.raises(ResultError, match="2\\*\\*64 - 1 of unlabelled voxels becomes -1"):
        count_contingency(truth.astype(np.int64), found, CREMI_IGNORED)


def test_large_ids_stay_apart() -> None:
    """2**53 and its neighbour are one number as float64."""
    truth = np.array([2**53, 2**53 + 1], np.uint64)
    assert len(count_contingency(truth, truth, ()).truth_sizes) == 2


def test_nothing_left_is_not_defined() -> None:
    for truth in (np.zeros((2, 3), np.uint8), np.zeros((0, 3), np.uint8)):
        table = count_contingency(truth, truth)
        assert table.n_voxels == 0
        assert math.isnan(variation_of_information(table).split)
        assert math.isnan(adapted_rand(table).error)
    singles = count_contingency(_ids("123"), _ids("456"))
    assert math.isnan(adapted_rand(singles).error)
    assert variation_of_information(singles).sum == 0


def test_no_pair_in_common_is_the_greatest_error() -> None:
    """scikit-image's quotient form has 0/0 at the steps in between; the error is 1."""
    rand = adapted_rand(count_contingency(_ids("1122"), _ids("1212")))
    assert (rand.error, rand.precision, rand.recall) == (1.0, 0.0, 0.0)


def test_wrong_input_is_refused() -> None:
    ids = np.ones((2, 2), np.uint8)
    with pytest.raises(ResultError, match=r"\(2, 2\) and \(2, 3\)"):
        count_contingency(ids, np.ones((2, 3), np.uint8))
    with pytest.raises(ResultError, match="truth must be whole numbers, got float64"):
        count_contingency(ids / 2, ids)
    with pytest.raises(ResultError, match="segmentation must be whole numbers, got bool"):
        count_contingency(ids, ids > 0)
    with pytest.raises(ConfigError, match="must not be negative"):
        cremi_score(VariationOfInformation(-1, 0), AdaptedRand(0, 1, 1))
