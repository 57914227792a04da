"""Harrell's concordance: of pairs of patients whose order is known, how many the risk puts in that order."""

from __future__ import annotations

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic

_ROWS_AT_ONCE = 512


def weighted_concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's C-index for each row of weights; NaN where no pair can be compared.

    A pair is compared when one had the event before the other's time, or at it while the other was censored there.
    It is right when that one has the higher risk; equal risks count half.

    Args:
        time: ``(n,)``.
        event: ``(n,)`` of 0 and 1.
        risk: ``(n,)``, higher = sooner.
        weights: ``(n_rows, n)``.

    Returns:
        float64 ``(n_rows,)``.

    Examples:
        >>> time, event = np.array([1.0, 2, 3]), np.array([1, 1, 0])
        >>> weighted_concordance(time, event, np.array([0.9, 0.1, 0.5]), np.ones((1, 3))).round(3).tolist()
        [0.667]
    """
    first = np.flatnonzero(np.asarray(event) == 1)
    right, compared = np.zeros(len(weights)), np.zeros(len(weights))
    for start in range(0, len(first), _ROWS_AT_ONCE):
        some = first[start : start + _ROWS_AT_ONCE, None]
        pair = (time > time[some]) | ((time == time[some]) & (event == 0))
        order = (risk < risk[some]) + 0.5 * (risk == risk[some])
        drawn = weights[:, some[:, 0]]
        right += (drawn * (weights @ (pair * order).T)).sum(1)
        compared += (drawn * (weights @ pair.T)).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(right / compared)


def _c_index(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    time, event = fold.truth.T
    return weighted_concordance(time, event, fold.scores, weights)


SURVIVAL_STATISTICS: dict[str, Statistic] = {"c_index": _c_index}
