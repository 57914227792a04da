"""Do predicted probabilities mean what they say?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reliability:
    """A reliability curve over bins of equal width on 0..1; empty bins are left out.

    Attributes:
        mean_score: float64 ``(n_bins,)`` mean predicted probability in the bin.
        positive_rate: float64 ``(n_bins,)`` share of positives in the bin.
        count: int64 ``(n_bins,)``.
        expected_calibration_error: mean distance of the two, weighted by count.
    """

    mean_score: np.ndarray
    positive_rate: np.ndarray
    count: np.ndarray
    expected_calibration_error: float


def compute_reliability(y_true: np.ndarray, score: np.ndarray, n_bins: int = 10) -> Reliability:
    """Bin the predictions by score.

    Args:
        y_true: ``(n,)`` of 0 and 1.
        score: ``(n,)`` probabilities of the positive class.
        n_bins: bins on 0..1; the last includes 1.

    Examples:
        >>> curve = compute_reliability(np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.9, 0.9]))
        >>> curve.positive_rate.tolist(), round(curve.expected_calibration_error, 3)
        ([0.5, 1.0], 0.2)
    """
    y_true, score = np.asarray(y_true, np.float64), np.asarray(score, np.float64)
    bins = np.clip((score * n_bins).astype(np.int64), 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    kept = count > 0
    mean_score = np.bincount(bins, score, n_bins)[kept] / count[kept]
    positive_rate = np.bincount(bins, y_true, n_bins)[kept] / count[kept]
    distance = np.abs(mean_score - positive_rate)
    error = float((distance * count[kept]).sum() / max(count.sum(), 1))
    return Reliability(mean_score, positive_rate, count[kept], error)
