"""Figures of predicted numbers, for the predictions as they are and for resamples of patients."""

from __future__ import annotations

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights @ values / weights.sum(1))


def _mae(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    return _mean(np.abs(fold.scores - fold.truth[:, 0]), weights)


def _rmse(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean((fold.scores - fold.truth[:, 0]) ** 2, weights))


def _r2(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    truth = fold.truth[:, 0] - fold.truth[:, 0].mean()  # near zero, so that the difference of squares keeps its digits
    spread = _mean(truth**2, weights) - _mean(truth, weights) ** 2
    return _over(spread - _mean((fold.scores - fold.truth[:, 0]) ** 2, weights), spread)


def _pearson(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    shape = weights.shape
    return correlation(np.broadcast_to(fold.truth[:, 0], shape), np.broadcast_to(fold.scores, shape), weights)


def _spearman(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    return correlation(weighted_ranks(fold.truth[:, 0], weights), weighted_ranks(fold.scores, weights), weights)


def correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Pearson's r for each row; all ``(n_rows, n)``; NaN where one of both does not vary."""
    total = weights.sum(1, keepdims=True)
    a, b = (values - (weights * values).sum(1, keepdims=True) / total for values in (first, second))
    variances = (weights * a * a).sum(1) * (weights * b * b).sum(1)
    scale = (weights * first**2).sum(1) * (weights * second**2).sum(1)
    constant = variances <= 1e-24 * scale  # what rounding leaves of values that are all equal
    return np.where(constant, np.nan, _over((weights * a * b).sum(1), np.sqrt(variances)))


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return for each row ``(n_rows, n)`` the rank of each value, one of weight 3 standing three times; ties share.

    Examples:
        >>> weighted_ranks(np.array([5.0, 1.0, 5.0]), np.array([[1, 1, 1], [1, 2, 0]])).tolist()
        [[2.5, 1.0, 2.5], [3.0, 1.5, 3.0]]
    """
    distinct, place = np.unique(values, return_inverse=True)
    in_group = np.zeros((len(weights), len(distinct)))
    for index, group in enumerate(place):
        in_group[:, group] += weights[:, index]
    return np.asarray((np.cumsum(in_group, 1) - in_group + (in_group + 1) / 2)[:, place])


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


REGRESSION_STATISTICS: dict[str, Statistic] = {
    "mae": _mae,
    "rmse": _rmse,
    "r2": _r2,
    "pearson": _pearson,
    "spearman": _spearman,
}
