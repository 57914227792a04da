"""Receiver operating characteristics of folds, their mean, and how sure the mean is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_GRID_POINTS = 101
_N_RESAMPLES = 200


@dataclass(frozen=True)
class ScoredFold:
    """Held-out scores of one fold (or of one class against the rest).

    Attributes:
        name: as the legend says it.
        is_positive: bool ``(n,)``.
        score: float64 ``(n,)``, higher = more positive.
        patient_id: text ``(n,)``; resampling draws whole patients.
    """

    name: str
    is_positive: np.ndarray
    score: np.ndarray
    patient_id: np.ndarray

    @property
    def has_both_classes(self) -> bool:
        """Whether a curve can be drawn at all."""
        return bool(self.is_positive.any()) and not bool(self.is_positive.all())


@dataclass(frozen=True)
class MeanRoc:
    """Vertical mean of several curves on one grid.

    Attributes:
        false_positive_rate: float64 ``(101,)``, 0 to 1.
        mean, low, high: true positive rate at each grid point; the band is the 95 % interval of the
            mean over bootstrap samples of patients (percentile method).
    """

    false_positive_rate: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def roc_points(is_positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every distinct threshold, from (0, 0) to (1, 1).

    Tied scores make one step, as they must: the area is then that of the Mann-Whitney statistic.

    Args:
        is_positive: bool ``(n,)`` with both values present.
        score: float ``(n,)``.

    Examples:
        >>> fpr, tpr = roc_points(np.array([True, False, True]), np.array([0.9, 0.5, 0.5]))
        >>> fpr.tolist(), tpr.tolist()
        ([0.0, 0.0, 1.0], [0.0, 0.5, 1.0])
    """
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(is_positive[order])
    misses = np.cumsum(~is_positive[order])
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    true_positive_rate = np.append(0.0, hits[last_of_tie] / hits[-1])
    false_positive_rate = np.append(0.0, misses[last_of_tie] / misses[-1])
    return false_positive_rate, true_positive_rate


def area_under(false_positive_rate: np.ndarray, true_positive_rate: np.ndarray) -> float:
    """Return the area under a curve by trapezoids.

    Examples:
        >>> area_under(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0]))
        1.0
    """
    return float(np.trapezoid(true_positive_rate, false_positive_rate))


def mean_roc(folds: Sequence[ScoredFold], seed: int = 0) -> MeanRoc | None:
    """Return the mean curve of all folds that hold both classes, or None when no fold does."""
    usable = [fold for fold in folds if fold.has_both_classes]
    if not usable:
        return None
    grid = np.linspace(0.0, 1.0, _GRID_POINTS)
    rng = np.random.default_rng(seed)
    samples = [_mean_on_grid([_resampled(fold, rng) for fold in usable], grid) for _ in range(_N_RESAMPLES)]
    low, high = np.percentile(np.stack(samples), [2.5, 97.5], axis=0)
    return MeanRoc(grid, _mean_on_grid(usable, grid), low, high)


def _mean_on_grid(folds: Sequence[ScoredFold], grid: np.ndarray) -> np.ndarray:
    curves = [_on_grid(fold, grid) for fold in folds if fold.has_both_classes]
    return np.mean(curves, axis=0) if curves else grid.copy()


def _on_grid(fold: ScoredFold, grid: np.ndarray) -> np.ndarray:
    false_positive_rate, true_positive_rate = roc_points(fold.is_positive, fold.score)
    curve = np.interp(grid, false_positive_rate, true_positive_rate)
    curve[0] = 0.0
    return curve


def _resampled(fold: ScoredFold, rng: np.random.Generator) -> ScoredFold:
    patients, owner = np.unique(fold.patient_id, return_inverse=True)
    rows_of = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    drawn = rng.integers(0, len(patients), len(patients))
    rows = np.concatenate([rows_of[index] for index in drawn])
    return ScoredFold(fold.name, fold.is_positive[rows], fold.score[rows], fold.patient_id[rows])
