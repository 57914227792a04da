"""DeLong's variance against direct double sums, other programs' figures, and what it must do under the null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval, cv_replicates
from wsi_dino.evaluation.delong import auc_influence, delong_interval, delong_test, structural_components
from wsi_dino.evaluation.metrics import STATISTICS, weighted_auc


def _fold(y: np.ndarray, score: np.ndarray, patients: list[str] | None = None, tag: str = "") -> FoldPredictions:
    return FoldPredictions(y, score, patients or [f"{tag}{i}" for i in range(len(y))])


def _drawn(seed: int, n: int = 60, levels: int = 12, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two dependent scores with many ties."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 3 == 0).astype(int)
    common = rng.normal(y * shift, 1)
    return y, *(np.round((common + rng.normal(0, 0.7, n)) * levels / 4) / levels for _ in range(2))


def _kernel(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    """K ``(n_positive, n_negative)``, pair by pair."""
    pairs = [[float(p > q) + 0.5 * float(p == q) for q in score[y == 0]] for p in score[y == 1]]
    return np.array(pairs)


def _direct_covariance(y: np.ndarray, *scores: np.ndarray) -> np.ndarray:
    """DeLong 1988 by its definition: covariances of the components of every pair."""
    kernels = [_kernel(y, score) for score in scores]
    by_positive, by_negative = ([k.mean(axis) for k in kernels] for axis in (1, 0))
    s10, s01 = (np.atleast_2d(np.cov(v, ddof=1)) for v in (by_positive, by_negative))
    return s10 / (y == 1).sum() + s01 / (y == 0).sum()


@pytest.mark.parametrize("seed", range(8))
def test_variance_and_covariance_equal_the_double_sum(seed: int) -> None:
    y, a, b = _drawn(seed)
    first, second = auc_influence([_fold(y, a)]), auc_influence([_fold(y, b)])
    expected = _direct_covariance(y, a, b)
    assert first.value == pytest.approx(roc_auc_score(y, a))
    assert first.variance == pytest.approx(expected[0, 0])
    assert float(first.influence @ second.influence) == pytest.approx(expected[0, 1])
    test = delong_test(first, second)
    error = np.sqrt(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert test.standard_error == pytest.approx(error)
    assert test.p == pytest.approx(2 * stats.norm.sf(abs(first.value - second.value) / error))
    assert (test.low, test.high) == pytest.approx(test.difference + np.array([-1, 1]) * stats.norm.ppf(0.975) * error)


@pytest.mark.parametrize(
    ("seed", "p", "plain"),
    [
        (0, 0.012776228509373109, (0.6646419511054817, 0.9141080488945181)),
        (1, 0.5310011106994126, (0.6477543240163237, 0.9034956759836763)),
        (2, 0.40641899192757047, (0.6605581867534237, 0.9206918132465766)),
    ],
)
def test_equals_another_program(seed: int, p: float, plain: tuple[float, float]) -> None:
    """Figures of MLstatkit 0.1.91 (`Delong_test`) on the same scores, many of them tied."""
    y, a, b = _drawn(seed)
    first = auc_influence([_fold(y, a)])
    interval = delong_interval(first, scale="plain")
    assert delong_test(first, auc_influence([_fold(y, b)])).p == pytest.approx(p)
    assert (interval.low, interval.high) == pytest.approx(plain)


def test_components_equal_those_of_scipys_empirical_distribution() -> None:
    y, a, _ = _drawn(3)
    above, below = structural_components(y == 1, a)
    negatives, positives = stats.ecdf(a[y == 0]).cdf, stats.ecdf(a[y == 1]).cdf
    step = 1e-9
    assert above == pytest.approx((negatives.evaluate(a[y == 1]) + negatives.evaluate(a[y == 1] - step)) / 2)
    assert below == pytest.approx(1 - (positives.evaluate(a[y == 0]) + positives.evaluate(a[y == 0] - step)) / 2)


def test_intervals_by_both_scales_follow_their_formula() -> None:
    y, a, _ = _drawn(1)
    auc = auc_influence([_fold(y, a)])
    error, z = np.sqrt(auc.variance), stats.norm.ppf(0.95)
    plain = delong_interval(auc, 0.9, "plain")
    assert (plain.low, plain.high) == pytest.approx((auc.value - z * error, auc.value + z * error))
    logit = delong_interval(auc, 0.9)
    middle = np.log(auc.value / (1 - auc.value))
    bounds = stats.logistic.cdf(middle + np.array([-1, 1]) * z * error / (auc.value * (1 - auc.value)))
    assert (logit.low, logit.high) == pytest.approx(bounds)


def test_folds_add_as_independent_ones_do() -> None:
    drawn = [_drawn(seed, n=40 + seed) for seed in range(4)]
    auc = auc_influence([_fold(y, a, tag=f"{k}-") for k, (y, a, _) in enumerate(drawn)])
    assert auc.value == pytest.approx(np.mean([roc_auc_score(y, a) for y, a, _ in drawn]))
    assert auc.variance == pytest.approx(sum(_direct_covariance(y, a)[0, 0] for y, a, _ in drawn) / 16)
    assert not auc.is_clustered


def test_seeds_on_one_test_set_are_not_taken_for_new_patients() -> None:
    y, a, b = _drawn(5)
    both = auc_influence([_fold(y, a), _fold(y, b)])
    assert both.is_clustered
    assert both.variance == pytest.approx(_direct_covariance(y, a, b).sum() / 4)
    twice = auc_influence([_fold(y, a), _fold(y, a)])
    assert twice.variance == pytest.approx(auc_influence([_fold(y, a)]).variance)


def _obuchowski(y: np.ndarray, score: np.ndarray, patients: np.ndarray) -> float:
    """Obuchowski 1997, as printed there, by sums over clusters."""
    kernel, names = _kernel(y, score), np.unique(patients)
    auc, m, n = kernel.mean(), (y == 1).sum(), (y == 0).sum()
    x = np.array([(kernel.mean(1)[patients[y == 1] == p] - auc).sum() for p in names])
    z = np.array([(kernel.mean(0)[patients[y == 0] == p] - auc).sum() for p in names])
    i10, i01, i = len(np.unique(patients[y == 1])), len(np.unique(patients[y == 0])), len(names)
    s10, s01, s11 = i10 / (i10 - 1) * x @ x / m, i01 / (i01 - 1) * z @ z / n, i / (i - 1) * x @ z
    return float(s10 / m + s01 / n + 2 * s11 / (m * n))


@pytest.mark.parametrize("is_mixed", [False, True])
def test_slides_of_a_patient_are_clustered_as_obuchowski_does(is_mixed: bool) -> None:
    rng = np.random.default_rng(7)
    patients = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    y = rng.integers(0, 2, len(patients)) if is_mixed else patients % 2
    score = rng.normal(size=40)[patients] + y + rng.normal(0, 0.3, len(y))
    ours = auc_influence([_fold(y, score, [str(p) for p in patients])])
    assert ours.is_clustered
    tolerance = 0.02 if is_mixed else 1e-9  # the mixed term is scaled otherwise, see there
    assert ours.variance == pytest.approx(_obuchowski(y, score, patients), rel=tolerance)


def test_copies_of_slides_add_no_certainty() -> None:
    y, a, _ = _drawn(2)
    copies = _fold(np.repeat(y, 5), np.repeat(a, 5), [str(i) for i in np.repeat(np.arange(len(y)), 5)])
    assert auc_influence([copies]).variance == pytest.approx(auc_influence([_fold(y, a)]).variance)


def test_agrees_with_the_patient_bootstrap() -> None:
    y, a, b = _drawn(11, n=300)
    folds = [[_fold(y, score)] for score in (a, b)]
    first, second = map(auc_influence, folds)
    replicates = [
        cv_replicates(fold, lambda f, w: weighted_auc(f.y_true == 1, f.scores, w), n_resamples=4000, seed=1)
        for fold in folds
    ]
    assert np.std(replicates[0]) == pytest.approx(np.sqrt(first.variance), rel=0.08)
    assert np.std(replicates[0] - replicates[1]) == pytest.approx(delong_test(first, second).standard_error, rel=0.08)


def test_three_classes_agree_with_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(150) % 3
    scores = rng.dirichlet(np.ones(3), 150) + 0.3 * np.eye(3)[y]
    fold = _fold(y, scores / scores.sum(1, keepdims=True))
    auc, interval = auc_influence([fold]), cv_interval([fold], STATISTICS["auc"], n_resamples=3000)
    assert auc.value == pytest.approx(interval.value)
    assert np.sqrt(auc.variance) == pytest.approx((interval.high - interval.low) / 3.92, rel=0.1)


@pytest.mark.parametrize("change", [np.exp, lambda s: s**3, lambda s: 5 * s - 2])
def test_nothing_depends_on_the_scale_of_scores(change: object) -> None:
    y, a, b = _drawn(4)
    first, second = auc_influence([_fold(y, a)]), auc_influence([_fold(y, b)])
    changed = auc_influence([_fold(y, change(a))])  # type: ignore[operator]
    assert changed.influence == pytest.approx(first.influence, abs=1e-12)
    assert delong_test(changed, second).p == pytest.approx(delong_test(first, second).p)


def test_exchanging_encoders_turns_the_sign_alone() -> None:
    y, a, b = _drawn(6)
    first, second = auc_influence([_fold(y, a)]), auc_influence([_fold(y, b)])
    there, back = delong_test(first, second), delong_test(second, first)
    assert there.p == back.p
    assert there.z == -back.z
    assert (there.difference, there.low, there.high) == (-back.difference, -back.high, -back.low)


def test_p_is_uniform_when_both_are_equally_good() -> None:
    p_values = []
    for seed in range(400):
        y, a, b = _drawn(seed, n=90, levels=1000)
        p_values.append(delong_test(auc_influence([_fold(y, a)]), auc_influence([_fold(y, b)])).p)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


def test_interval_holds_the_truth_at_its_level() -> None:
    truth, rng, held = stats.norm.cdf(1.5 / np.sqrt(2)), np.random.default_rng(0), 0
    y = np.arange(80) % 2
    for _ in range(500):
        interval = delong_interval(auc_influence([_fold(y, rng.normal(1.5 * y, 1))]))
        held += interval.low <= truth <= interval.high
    assert 0.92 <= held / 500 <= 0.98


# edges ----------------------------------------------------------------------------------------
def test_perfect_separation_gives_no_interval_and_says_so() -> None:
    interval = delong_interval(auc_influence([_fold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))]))
    assert interval.value == 1
    assert interval.standard_error == 0
    assert np.isnan([interval.low, interval.high]).all()
    assert "variance is 0" in interval.note


def test_all_tied_gives_no_interval_and_says_so() -> None:
    interval = delong_interval(auc_influence([_fold(np.array([0, 0, 1, 1]), np.full(4, 0.5))]))
    assert interval.value == 0.5
    assert "variance is 0" in interval.note


def test_three_slides_have_no_variance_since_a_class_has_one() -> None:
    auc = auc_influence([_fold(np.array([0, 0, 1]), np.array([0.1, 0.7, 0.5]))])
    assert auc.value == 0.5
    assert np.isnan(auc.variance)
    assert "fold 0" in delong_interval(auc).note
    assert np.isnan(delong_test(auc, auc).p)


def test_a_fold_of_one_class_is_named() -> None:
    y, a, _ = _drawn(0)
    auc = auc_influence([_fold(y, a), _fold(np.ones(4, int), np.arange(4.0), tag="x")])
    assert np.isnan(auc.value)
    assert "fold 1" in auc.note
    assert np.isnan(delong_interval(auc).low)


def test_equal_scores_have_p_1_and_unlike_ones_without_variance_none() -> None:
    y = np.array([0, 0, 1, 1])
    perfect, tied = (auc_influence([_fold(y, np.array(s))]) for s in ([0.1, 0.2, 0.8, 0.9], [0.5] * 4))
    assert delong_test(perfect, perfect).p == 1
    assert np.isnan(delong_test(perfect, tied).p)
    assert "variance" in delong_test(perfect, tied).note


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        auc_influence([_fold(np.array([0, 1, 1]), np.array([0.1, wrong, 0.3]))])


def test_other_patients_are_refused() -> None:
    y, a, _ = _drawn(0)
    with pytest.raises(ValueError, match="same patients"):
        delong_test(auc_influence([_fold(y, a)]), auc_influence([_fold(y, a, tag="x")]))
