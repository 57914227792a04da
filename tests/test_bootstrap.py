"""Bootstrap intervals against resampling by hand, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval, cv_replicates
from wsi_dino.evaluation.metrics import STATISTICS, binary_metrics, multiclass_metrics, weighted_auc


def _fold(
    seed: int, n_patients: int = 40, slides_each: int = 2, shift: float = 1.0, levels: int = 20
) -> FoldPredictions:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_patients) % 2, slides_each)
    effect = np.repeat(rng.normal(size=n_patients), slides_each)
    score = 1 / (1 + np.exp(-(shift * (y - 0.5) + effect + 0.3 * rng.normal(size=len(y)))))
    patients = np.repeat([f"p{i}" for i in range(n_patients)], slides_each)
    return FoldPredictions(y, np.round(score * levels) / levels, patients.tolist(), 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_auc_equals_scikit_learn(seed: int) -> None:
    fold = _fold(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (6, len(fold.y_true))).astype(float)
    ours = weighted_auc(fold.y_true == 1, fold.scores, weights)
    theirs = [sk.roc_auc_score(fold.y_true, fold.scores, sample_weight=row) for row in weights]
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_equals_the_metric_of_the_repeated_slides(name: str) -> None:
    fold = _fold(1)
    counts = np.random.default_rng(2).integers(0, 3, (4, len(fold.y_true)))
    ours = STATISTICS[name](fold, counts.astype(float))
    for row, value in zip(counts, ours, strict=True):
        y, score = np.repeat(fold.y_true, row), np.repeat(fold.scores, row)
        assert value == pytest.approx(binary_metrics(y, score, fold.threshold)[name])


@pytest.mark.parametrize("name", ["auc", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "brier"])
def test_multiclass_statistics_equal_the_metric_of_the_repeated_slides(name: str) -> None:
    rng = np.random.default_rng(3)
    y = rng.permutation(np.arange(60) % 3)
    scores = rng.dirichlet(np.ones(3), 60)
    counts = rng.integers(0, 3, 60)
    ours = STATISTICS[name](FoldPredictions(y, scores, [str(i) for i in range(60)]), counts[None].astype(float))
    assert ours[0] == pytest.approx(multiclass_metrics(np.repeat(y, counts), np.repeat(scores, counts, axis=0))[name])


def test_interval_agrees_with_resampling_patients_by_hand() -> None:
    folds = [_fold(seed) for seed in range(3)]
    interval = cv_interval(folds, STATISTICS["auc"], n_resamples=4000, seed=0)
    rng, means = np.random.default_rng(1), []
    for _ in range(1500):
        aucs = []
        for fold in folds:
            patients = np.array(fold.patient_id)
            drawn = [
                rng.choice(np.unique(patients[fold.y_true == label]), (fold.y_true == label).sum() // 2)
                for label in (0, 1)
            ]
            rows = np.concatenate([np.flatnonzero(patients == p) for p in np.concatenate(drawn)])
            aucs.append(sk.roc_auc_score(fold.y_true[rows], fold.scores[rows]))
        means.append(np.mean(aucs))
    assert [interval.low, interval.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)
    assert interval.value == pytest.approx(np.mean([sk.roc_auc_score(f.y_true, f.scores) for f in folds]))


def test_slides_of_one_patient_count_as_one() -> None:
    """Twenty copies of every slide must not narrow the interval, as resampling slides would."""
    single = _fold(5, slides_each=1)
    copies = FoldPredictions(
        np.repeat(single.y_true, 20), np.repeat(single.scores, 20), np.repeat(single.patient_id, 20).tolist()
    )
    one, many = cv_interval([single], STATISTICS["auc"], seed=3), cv_interval([copies], STATISTICS["auc"], seed=3)
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


def test_interval_covers_the_truth_at_its_level() -> None:
    """AUC of two normals one apart is known; 90 % intervals must hold it about nine times in ten."""
    truth = 0.7602499389065233  # Phi(1 / sqrt(2))
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        y = np.arange(100) % 2
        fold = FoldPredictions(y, rng.normal(y, 1.0), [str(i) for i in range(100)])
        interval = cv_interval([fold], STATISTICS["auc"], n_resamples=400, level=0.9, seed=seed)
        held += interval.low <= truth <= interval.high
    assert 0.82 <= held / 200 <= 0.96


def test_no_resample_lacks_a_class_and_the_seed_decides() -> None:
    rare = FoldPredictions(np.r_[1, 1, np.zeros(30, int)], np.linspace(0.9, 0.1, 32), [str(i) for i in range(32)])
    first, again = (cv_interval([rare], STATISTICS["auc"], seed=5) for _ in range(2))
    assert np.isfinite([first.low, first.high]).all()
    assert first == again
    other = cv_interval([_fold(0)], STATISTICS["auc"], seed=1)
    assert other != cv_interval([_fold(0)], STATISTICS["auc"], seed=2)


def test_folds_that_test_the_same_patients_are_drawn_together() -> None:
    """Five seeds on one test set with equal scores tell no more than one of them."""
    one = _fold(4)
    single, five = (
        cv_interval([one], STATISTICS["auc"], n_resamples=500, seed=1),
        cv_interval([one] * 5, STATISTICS["auc"], n_resamples=500, seed=1),
    )
    assert (five.low, five.high) == pytest.approx((single.low, single.high), abs=0.02)
    moved = [_fold(4), FoldPredictions(one.y_true, one.scores, [f"q{p}" for p in one.patient_id])]
    apart = cv_interval(moved, STATISTICS["auc"], n_resamples=500, seed=1)
    assert apart.high - apart.low < 0.85 * (single.high - single.low)


def test_the_same_patients_are_drawn_whatever_the_scores() -> None:
    """Drawn alike, two encoders that differ by a constant differ by it in each sample."""
    folds = [_fold(seed) for seed in range(2)]
    moved = [FoldPredictions(f.y_true, f.scores + 1, f.patient_id) for f in folds]

    def mean_score(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
        return weights @ fold.scores / weights.sum(1)

    first, second = (cv_replicates(each, mean_score, n_resamples=50, seed=2) for each in (folds, moved))
    assert second - first == pytest.approx(np.ones(50))


def test_a_fold_of_one_class_has_no_auc_and_no_interval() -> None:
    one_class = FoldPredictions(np.ones(5, int), np.linspace(0, 1, 5), list("abcde"))
    interval = cv_interval([_fold(0), one_class], STATISTICS["auc"], n_resamples=50)
    assert np.isnan([interval.value, interval.low, interval.high]).all()
