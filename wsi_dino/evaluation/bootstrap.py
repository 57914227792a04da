"""Intervals by resampling patients, for figures that are a mean over folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class FoldPredictions:
    """What one fold said about its test slides.

    Attributes:
        y_true: int64 ``(n,)`` class indices.
        scores: float64 ``(n,)`` probability of the positive class, or ``(n, n_classes)``.
        patient_id: ``(n,)``, the unit that is resampled.
        threshold: the fold's cut on a binary score.
        values: float64 ``(n, k)`` truth of targets that are no classes; `y_true` then says only which patients are
            drawn apart from each other.
    """

    y_true: np.ndarray
    scores: np.ndarray
    patient_id: Sequence[str]
    threshold: float = 0.5
    values: np.ndarray | None = None

    @property
    def truth(self) -> np.ndarray:
        """`values` of a target that has them."""
        if self.values is None:
            raise ValueError("these predictions are of classes: they have no values")
        return self.values


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile interval."""

    value: float
    low: float
    high: float


Statistic = Callable[[FoldPredictions, np.ndarray], np.ndarray]


def cv_interval(
    fold_predictions: Sequence[FoldPredictions],
    compute: Statistic,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    skip_unknown: bool = False,
) -> Interval:
    """Return the mean of a figure over folds, with its bootstrap interval.

    In each fold the patients are drawn with replacement, each with all of their slides, within
    strata of patients that have the same classes, so that no resample lacks a class. The interval
    speaks of the patients tested, not of the chance in training. Where every resample gives the
    same figure (a perfect AUC) it has no width, which does not mean certainty.

    Args:
        fold_predictions: the test predictions of each fold.
        compute: a function of (predictions, weights float64 ``(n_resamples, n)``) that returns one figure for
            each row of slide weights, such as those of `metrics.STATISTICS`.
        n_resamples: bootstrap replicates.
        level: coverage of the interval.
        seed: of the resampling.
        skip_unknown: take the mean over the folds where the figure exists; otherwise one without it leaves none.
    """
    values = [figure_of(compute, fold) for fold in fold_predictions]
    known = [value for value in values if not (skip_unknown and np.isnan(value))]
    value = float(np.mean(known)) if known else float("nan")
    if np.isnan(value):  # a fold tests on one class
        return Interval(value, value, value)
    replicates = cv_replicates(fold_predictions, compute, n_resamples=n_resamples, seed=seed)
    low, high = percentile_bounds(replicates, level)
    return Interval(value, float(low), float(high))


def figure_of(compute: Statistic, fold: FoldPredictions) -> float:
    """Return a figure of the predictions as they are."""
    return float(compute(fold, np.ones((1, len(fold.y_true))))[0])


def percentile_bounds(replicates: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Return the lower and upper bound, ``(2, ...)``, of replicates ``(n_resamples, ...)``; NaN ones are left out."""
    known = replicates[~np.isnan(replicates).reshape(len(replicates), -1).any(1)]
    if not len(known):
        return np.full((2, *replicates.shape[1:]), np.nan)
    return np.asarray(np.quantile(known, [(1 - level) / 2, (1 + level) / 2], axis=0))


def cv_replicates(
    fold_predictions: Sequence[FoldPredictions], compute: Statistic, *, n_resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """Return the mean over folds of a figure for each bootstrap sample of patients.

    The same folds and seed draw the same patients, whatever the scores: the difference of two encoders'
    replicates is a paired bootstrap. Folds that test the same patients (several seeds on one test set)
    draw them together; a fold that then lacks a class is left out of that sample.

    Args:
        fold_predictions: the test predictions of each fold.
        compute: a function of (predictions, weights float64 ``(n_resamples, n)``) that returns one figure
            or one array of figures for each row of slide weights.
        n_resamples: bootstrap replicates.
        seed: of the resampling.

    Returns:
        float64 ``(n_resamples, ...)``.
    """
    draw = _joint_draws(fold_predictions, seed) if _share_patients(fold_predictions) else _draws(fold_predictions, seed)
    parts = []
    for start in range(0, n_resamples, _RESAMPLES_AT_ONCE):
        weights = draw(min(_RESAMPLES_AT_ONCE, n_resamples - start))
        figures = [compute(fold, each) for fold, each in zip(fold_predictions, weights, strict=True)]
        parts.append(_mean_of_known(np.stack(figures)))
    return np.concatenate(parts)


def _mean_of_known(figures: np.ndarray) -> np.ndarray:
    known = ~np.isnan(figures)
    if known.all():
        return np.asarray(figures.sum(0) / len(figures))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, figures, 0).sum(0) / known.sum(0))


def _share_patients(folds: Sequence[FoldPredictions]) -> bool:
    each = [set(map(str, fold.patient_id)) for fold in folds]
    return len(set().union(*each)) < sum(map(len, each))


def _draws(folds: Sequence[FoldPredictions], seed: int) -> Callable[[int], list[np.ndarray]]:
    """Return what draws slide weights ``(n_resamples, n_slides)`` for each fold, the folds independent."""
    plans = []
    for number, fold in enumerate(folds):
        patients, patient_of = np.unique(np.asarray(fold.patient_id, dtype=str), return_inverse=True)
        strata = _strata(patient_of, fold.y_true, len(patients))
        plans.append((np.random.default_rng([seed, number]), strata, patient_of))

    def draw(n: int) -> list[np.ndarray]:
        return [_drawn(random, strata, n)[:, patient_of] for random, strata, patient_of in plans]

    return draw


def _joint_draws(folds: Sequence[FoldPredictions], seed: int) -> Callable[[int], list[np.ndarray]]:
    """As `_draws`, each patient drawn once for all the folds that test it."""
    owners = np.concatenate([np.asarray(fold.patient_id, dtype=str) for fold in folds])
    patients, patient_of = np.unique(owners, return_inverse=True)
    strata = _strata(patient_of, np.concatenate([fold.y_true for fold in folds]), len(patients))
    of_fold = np.split(patient_of, np.cumsum([len(fold.y_true) for fold in folds])[:-1])
    random = np.random.default_rng([seed, 0])

    def draw(n: int) -> list[np.ndarray]:
        weights = _drawn(random, strata, n)
        return [weights[:, members] for members in of_fold]

    return draw


def _drawn(random: np.random.Generator, strata: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Draw how often each patient stands in each of `n` samples; within each stratum with replacement."""
    drawn = np.empty((n, sum(map(len, strata))))
    for members in strata:
        drawn[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n)
    return drawn


def _strata(patient_of: np.ndarray, y_true: np.ndarray, n_patients: int) -> list[np.ndarray]:
    """Group the patients by the set of classes that their slides have."""
    has_class = np.zeros((n_patients, int(y_true.max()) + 1), bool)
    has_class[patient_of, y_true] = True
    _, stratum = np.unique(has_class, axis=0, return_inverse=True)
    return [np.flatnonzero(stratum.ravel() == number) for number in range(int(stratum.max()) + 1)]
