"""Do predicted probabilities mean what they say?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_replicates, percentile_bounds


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


def calibration_interval(
    y_true: np.ndarray, score: np.ndarray, patient_id: Sequence[str], *, n_bins: int = 10, n_resamples: int = 2000,
    seed: int = 0, level: float = 0.95,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return percentile intervals of the expected calibration error and the mean squared error over patients.

    The calibration error of few slides is too large by chance, and in a resample more so: its interval
    lies high and may lie above the figure itself.

    Args:
        y_true: ``(n,)`` of 0 and 1.
        score: ``(n,)`` probabilities.
        patient_id: ``(n,)``, the unit that is resampled.
        n_bins: as for `compute_reliability`.
        n_resamples: bootstrap replicates.
        seed: of the resampling.
        level: coverage.

    Returns:
        ``low`` and ``high`` for ``ece`` and ``brier``.
    """
    fold = FoldPredictions(np.asarray(y_true, np.int64), np.asarray(score, np.float64), patient_id)
    cell = np.eye(n_bins)[np.clip((fold.scores * n_bins).astype(np.int64), 0, n_bins - 1)]
    gap = (fold.scores - fold.y_true)[:, None] * cell

    def errors(predictions: FoldPredictions, weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1)
        squared = weights @ (predictions.scores - predictions.y_true) ** 2
        return np.stack([np.abs(weights @ gap).sum(1) / total, squared / total], axis=1)

    low, high = percentile_bounds(cv_replicates([fold], errors, n_resamples=n_resamples, seed=seed), level)
    return {name: {"low": float(low[i]), "high": float(high[i])} for i, name in enumerate(("ece", "brier"))}
