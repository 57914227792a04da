"""The permutation test against swapping by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from wsi_dino.evaluation.bootstrap import FoldPredictions
from wsi_dino.evaluation.permutation import permutation_tests, swap_weights

Pair = tuple[list[FoldPredictions], list[FoldPredictions]]


def _pair(seed: int, sizes: tuple[int, ...] = (6, 5), slides_each: int = 2) -> Pair:
    """Two encoders on folds of `sizes` patients, with ties, at different scales."""
    rng = np.random.default_rng(seed)
    first, second = [], []
    for number, n in enumerate(sizes):
        patients = np.repeat([f"{number}-{i}" for i in range(n)], slides_each)
        y = np.repeat(np.arange(n) % 2, slides_each)
        a, b = (np.round(rng.normal(y, 1.0), 1) for _ in range(2))
        first.append(FoldPredictions(y, a, patients.tolist()))
        second.append(FoldPredictions(y, np.exp(b), patients.tolist()))
    return first, second


def _swapped_difference(first: list[FoldPredictions], second: list[FoldPredictions], swapped: set[str]) -> float:
    """Mean AUC of the first less that of the second after swapping ranks of some patients, by scikit-learn."""
    differences = []
    for a, b in zip(first, second, strict=True):
        is_swapped = np.isin(a.patient_id, list(swapped))
        ranks = [stats.rankdata(fold.scores) for fold in (a, b)]
        left, right = (np.where(is_swapped, ranks[1 - side], ranks[side]) for side in (0, 1))
        differences.append(roc_auc_score(a.y_true, left) - roc_auc_score(a.y_true, right))
    return float(np.mean(differences))


@pytest.mark.parametrize("seed", range(4))
def test_signed_sum_of_weights_is_the_difference_after_any_swap(seed: int) -> None:
    first, second = _pair(seed)
    weights, patients = swap_weights(first, second), sorted({p for fold in first for p in fold.patient_id})
    rng = np.random.default_rng(seed)
    for sign in [np.ones(len(weights)), *rng.choice([-1, 1], (20, len(weights)))]:
        swapped = {p for p, s in zip(patients, sign, strict=True) if s < 0}
        assert sign @ weights == pytest.approx(_swapped_difference(first, second, swapped), abs=1e-12)


def test_exact_p_equals_enumeration_by_hand() -> None:
    first, second = _pair(1, (4, 3))
    patients = sorted({p for fold in first for p in fold.patient_id})
    observed, hits = abs(_swapped_difference(first, second, set())), []
    for chosen in itertools.product((False, True), repeat=len(patients)):
        swapped = {p for p, is_swapped in zip(patients, chosen, strict=True) if is_swapped}
        hits.append(abs(_swapped_difference(first, second, swapped)) >= observed - 1e-9)
    [test] = permutation_tests(swap_weights(first, second)[:, None])
    assert test.is_exact
    assert test.p == pytest.approx(np.mean(hits))


def test_exact_p_equals_scipys() -> None:
    """The same signs on the same weights, by scipy's own permutation test."""
    weights = swap_weights(*_pair(2, (6, 6)))
    theirs = stats.permutation_test((weights,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert permutation_tests(weights[:, None])[0].p == pytest.approx(theirs.pvalue)


def test_sampled_p_comes_near_the_normal_one() -> None:
    weights = swap_weights(*_pair(3, (60, 60)))
    [test] = permutation_tests(weights[:, None], 20_000)
    assert not test.is_exact
    assert test.n == 20_000
    assert test.p == pytest.approx(2 * stats.norm.sf(abs(weights.sum()) / np.sqrt(weights @ weights)), abs=0.02)


def test_seeds_on_one_test_set_are_swapped_together() -> None:
    first, second = _pair(4, (8,))
    assert swap_weights(first * 3, second * 3) == pytest.approx(swap_weights(first, second))


def test_exchanging_encoders_leaves_p() -> None:
    for sizes in ((6,), (40,)):
        first, second = _pair(5, sizes)
        there, back = swap_weights(first, second), swap_weights(second, first)
        assert there == pytest.approx(-back)
        assert permutation_tests(there[:, None], 999)[0].p == permutation_tests(back[:, None], 999)[0].p


def test_scale_of_scores_does_not_matter() -> None:
    first, second = _pair(6)
    changed = [FoldPredictions(f.y_true, f.scores**3 - 7, f.patient_id) for f in first]
    assert swap_weights(changed, second) == pytest.approx(swap_weights(first, second))


def test_p_is_uniform_when_both_are_equally_good() -> None:
    p_values = [permutation_tests(swap_weights(*_pair(seed, (40,), 1))[:, None], 499)[0].p for seed in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    y, patients = np.arange(100) % 2, [str(i) for i in range(100)]
    good, poor = (FoldPredictions(y, rng.normal(shift * y, 1), patients) for shift in (3.0, 0.0))
    [test] = permutation_tests(swap_weights([good], [poor])[:, None], 999)
    assert test.p == pytest.approx(1 / 1000)


def test_three_classes_swap_as_one_against_the_rest() -> None:
    rng = np.random.default_rng(1)
    y, patients = np.arange(12) % 3, [str(i) for i in range(12)]
    a, b = (FoldPredictions(y, rng.dirichlet(np.ones(3), 12), patients) for _ in range(2))
    each = [
        swap_weights([FoldPredictions((y == c).astype(int), a.scores[:, c], patients)],
                     [FoldPredictions((y == c).astype(int), b.scores[:, c], patients)])
        for c in range(3)
    ]  # fmt: skip
    assert swap_weights([a], [b]) == pytest.approx(np.mean(each, axis=0))


# edges ----------------------------------------------------------------------------------------
def test_equal_encoders_have_p_1() -> None:
    first, _ = _pair(0)
    [test] = permutation_tests(swap_weights(first, first)[:, None])
    assert (test.p, test.n, test.is_exact) == (1.0, 1, True)


def test_three_patients_cannot_be_told_apart() -> None:
    y, patients = np.array([0, 0, 1]), list("abc")
    good, poor = (FoldPredictions(y, np.array(s), patients) for s in ([0.1, 0.2, 0.9], [0.9, 0.8, 0.1]))
    [test] = permutation_tests(swap_weights([good], [poor])[:, None])
    assert test.p >= 0.25


def test_one_class_gives_no_p() -> None:
    fold = FoldPredictions(np.ones(3, int), np.arange(3.0), list("abc"))
    [test] = permutation_tests(swap_weights([fold], [fold])[:, None])
    assert np.isnan(test.p)


def test_other_slides_or_no_numbers_are_refused() -> None:
    first, second = _pair(0)
    with pytest.raises(ValueError, match="same slides"):
        swap_weights(first, second[::-1])
    broken = [FoldPredictions(f.y_true, np.full(len(f.y_true), np.nan), f.patient_id) for f in second]
    with pytest.raises(ValueError, match="finite"):
        swap_weights(first, broken)
