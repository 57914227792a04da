"""Selective prediction: how good are the answers when the model may keep silent on slides it is unsure of?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_replicates, percentile_bounds
from wsi_dino.evaluation.metrics import weighted_auc

COVERAGES = tuple(round(0.05 * step, 2) for step in range(2, 21))  # 0.10 to 1.00 of the slides
CONFIDENCE = {
    "binary": "distance of the score from its fold's threshold, as a share of the way to 0 or to 1",
    "multiclass": "the score of the class that is said",
}


def confidence_of(fold: FoldPredictions) -> np.ndarray:
    """Return how sure each answer is: float64 ``(n,)``, 0 (at the threshold) to 1.

    Examples:
        >>> fold = FoldPredictions(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.6]), list("abc"), 0.2)
        >>> confidence_of(fold).round(3).tolist()
        [0.5, 0.0, 0.5]
    """
    if fold.scores.ndim == 2:
        return np.asarray(fold.scores.max(1))
    above = fold.scores >= fold.threshold
    room = np.where(above, 1 - fold.threshold, fold.threshold)
    distance = np.abs(fold.scores - fold.threshold)
    return np.divide(distance, room, out=np.zeros(len(distance)), where=room > 0)


def is_right(fold: FoldPredictions) -> np.ndarray:
    """Return whether each answer is right: bool ``(n,)``."""
    said = fold.scores.argmax(1) if fold.scores.ndim == 2 else (fold.scores >= fold.threshold).astype(int)
    return np.asarray(said == fold.y_true)


class _Ordered:
    """The answers from sure to unsure, those of equal confidence in one group."""

    def __init__(self, fold: FoldPredictions) -> None:
        confidence = confidence_of(fold)
        self.order = np.argsort(-confidence, kind="stable")
        ordered = confidence[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.is_wrong = ~is_right(fold)[self.order]

    def curve(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return slides kept and errors among them, each from 0, at the end of each group."""
        kept = np.add.reduceat(weights[self.order], self.starts)
        wrong = np.add.reduceat((weights[self.order] * self.is_wrong), self.starts)
        return np.r_[0.0, np.cumsum(kept)], np.r_[0.0, np.cumsum(wrong)]


def accuracy_at(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    """Return the accuracy among the surest share of slides, for each of `COVERAGES`.

    Where the cut falls among slides of equal confidence, a fitting share of each is taken.

    Args:
        fold: predictions.
        weights: ``(n_rows, n)``.

    Returns:
        float64 ``(n_rows, len(COVERAGES))``.
    """
    ordered, rows = _Ordered(fold), []
    for row in weights:
        kept, wrong = ordered.curve(row)
        target = np.array(COVERAGES) * kept[-1]
        rows.append(1 - np.interp(target, kept, wrong) / target)
    return np.array(rows)


def aurc(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    """Return the area under the risk-coverage curve: mean error rate among the surest 1, 2, ... n slides.

    Slides of equal confidence count as in random order. Weights are counts of slides.

    Returns:
        float64 ``(n_rows,)``; 0 is perfect, the overall error rate is what random confidence gives.
    """
    ordered, areas = _Ordered(fold), []
    for row in weights:
        kept, wrong = ordered.curve(row)
        steps = np.arange(1, round(float(kept[-1])) + 1)
        areas.append(float(np.mean(np.interp(steps, kept, wrong) / steps)))
    return np.array(areas)


def best_aurc(fold: FoldPredictions) -> float:
    """Return the area if all right answers were surer than all wrong ones."""
    n, wrong = len(fold.y_true), int((~is_right(fold)).sum())
    steps = np.arange(1, n + 1)
    return float(np.mean(np.maximum(0, steps - (n - wrong)) / steps))


def auc_at(fold: FoldPredictions, coverage: float) -> float:
    """Return the AUC among the surest share of slides, ties with the last one kept; NaN with one class left."""
    confidence = confidence_of(fold)
    n_kept = max(1, int(np.ceil(coverage * len(confidence) - 1e-9)))
    kept = confidence >= np.sort(confidence)[::-1][n_kept - 1]
    if fold.scores.ndim == 2:
        each = [_weighted(fold.y_true == c, fold.scores[:, c], kept) for c in range(fold.scores.shape[1])]
        return float(np.mean(each))
    return _weighted(fold.y_true == 1, fold.scores, kept)


def _weighted(is_positive: np.ndarray, score: np.ndarray, kept: np.ndarray) -> float:
    return float(weighted_auc(is_positive, score, kept[None].astype(float))[0])


def selective_section(folds: Sequence[FoldPredictions], *, n_resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Return the risk-coverage curve as plain values, each figure a mean over folds.

    Returns:
        ``coverage``; ``accuracy`` with ``low`` and ``high``, and ``auc`` there; ``aurc`` (``value``, ``low``,
        ``high``), ``aurc_of_random`` and ``aurc_of_best``; ``confidence`` in words.
    """
    once = [np.ones((1, len(fold.y_true))) for fold in folds]
    accuracy = np.mean([accuracy_at(fold, w)[0] for fold, w in zip(folds, once, strict=True)], axis=0)
    low, high = percentile_bounds(cv_replicates(folds, accuracy_at, n_resamples=n_resamples, seed=seed))
    area = float(np.mean([aurc(fold, w)[0] for fold, w in zip(folds, once, strict=True)]))
    area_low, area_high = percentile_bounds(cv_replicates(folds, aurc, n_resamples=n_resamples, seed=seed))
    return {
        "confidence": CONFIDENCE["multiclass" if folds[0].scores.ndim == 2 else "binary"],
        "coverage": list(COVERAGES),
        "accuracy": {"value": accuracy.tolist(), "low": low.tolist(), "high": high.tolist()},
        "auc": [float(np.mean([auc_at(fold, share) for fold in folds])) for share in COVERAGES],
        "aurc": {"value": area, "low": float(area_low), "high": float(area_high)},
        "aurc_of_random": float(np.mean([(~is_right(fold)).mean() for fold in folds])),
        "aurc_of_best": float(np.mean([best_aurc(fold) for fold in folds])),
    }
