"""Figures of merit of a classifier; equal to scikit-learn's, and defined where a ratio is 0/0."""

from __future__ import annotations

from typing import Any

import numpy as np

BINARY_METRICS = (
    "auc", "average_precision", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "brier",
)  # fmt: skip
MULTICLASS_METRICS = ("auc", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "brier")


def binary_metrics(y_true: np.ndarray, score: np.ndarray, threshold: float) -> dict[str, Any]:
    """Compute `BINARY_METRICS` of one set of predictions.

    A slide counts as positive when its score is at or above `threshold`. Precision without a
    predicted positive, recall without a positive, specificity without a negative and F1 without
    either are 0/0: they are given as 0.0 and named under ``undefined``. AUC and average precision
    with one class only, and every figure of an empty set, are NaN and named there too.

    Args:
        y_true: ``(n,)`` of 0 and 1.
        score: ``(n,)``, higher = more positive; the Brier score takes it for a probability.
        threshold: cut on `score`.

    Returns:
        The figures, the confusion counts ``tp fp tn fn`` and ``undefined``.

    Examples:
        >>> figures = binary_metrics(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]), 0.5)
        >>> figures["auc"], figures["precision"], figures["recall"], figures["undefined"]
        (0.75, 1.0, 0.5, [])
    """
    y_true, score = _checked(y_true, score)
    predicted = score >= threshold
    positive = y_true == 1
    tp, fp = int((predicted & positive).sum()), int((predicted & ~positive).sum())
    fn, tn = int((~predicted & positive).sum()), int((~predicted & ~positive).sum())
    undefined: list[str] = []
    recall = _ratio(tp, tp + fn, "recall", undefined)
    specificity = _ratio(tn, tn + fp, "specificity", undefined)
    one_class = len(np.unique(y_true)) < 2
    undefined += ["auc", "average_precision"] if one_class else []
    return {
        "auc": auc(y_true, score),
        "average_precision": average_precision(y_true, score),
        "accuracy": (tp + tn) / len(score) if len(score) else float("nan"),
        "balanced_accuracy": (recall + specificity) / 2 if not one_class else float("nan"),
        "precision": _ratio(tp, tp + fp, "precision", undefined),
        "recall": recall,
        "specificity": specificity,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, "f1", undefined),
        "brier": float(np.mean((score - y_true) ** 2)) if len(score) else float("nan"),
        **{"tp": tp, "fp": fp, "tn": tn, "fn": fn},
        "undefined": undefined,
    }


def multiclass_metrics(y_true: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Compute `MULTICLASS_METRICS`; the class with the highest score is predicted.

    AUC is the mean over classes of one against the rest; precision, recall and F1 are means over
    classes (macro), 0/0 being 0.0 and named ``precision[2]`` under ``undefined``. The Brier score is
    the mean squared distance of the score vector from the one-hot truth.

    Args:
        y_true: ``(n,)`` class indices.
        scores: ``(n, n_classes)``, rows summing to one.
    """
    y_true, scores = np.asarray(y_true), np.asarray(scores, np.float64)
    n_classes = scores.shape[1]
    predicted = scores.argmax(1)
    undefined: list[str] = []
    table = confusion(y_true, predicted, n_classes)
    hits = table.diagonal()
    precision = [_ratio(hits[c], table[:, c].sum(), f"precision[{c}]", undefined) for c in range(n_classes)]
    recall = [_ratio(hits[c], table[c].sum(), f"recall[{c}]", undefined) for c in range(n_classes)]
    f1 = [_ratio(2 * hits[c], table[c].sum() + table[:, c].sum(), f"f1[{c}]", undefined) for c in range(n_classes)]
    aucs = [auc(y_true == c, scores[:, c]) for c in range(n_classes)]
    undefined += [f"auc[{c}]" for c in range(n_classes) if np.isnan(aucs[c])]
    present = table.sum(1) > 0
    return {
        "auc": float(np.mean(aucs)),
        "accuracy": float(np.mean(predicted == y_true)),
        "balanced_accuracy": float(np.mean(np.array(recall)[present])),
        "precision": float(np.mean(precision)),
        "recall": float(np.mean(recall)),
        "f1": float(np.mean(f1)),
        "brier": float(np.mean(((scores - np.eye(n_classes)[y_true]) ** 2).sum(1))),
        "undefined": undefined,
    }


def _checked(y_true: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y_true, score = np.asarray(y_true).astype(np.int64), np.asarray(score, np.float64)
    if y_true.shape != score.shape or y_true.ndim != 1:
        raise ValueError(f"expected y_true and score of one shape (n,), got {y_true.shape} and {score.shape}")
    if not np.isfinite(score).all():
        raise ValueError(f"score has {int((~np.isfinite(score)).sum())} values that are not finite")
    if not np.isin(y_true, (0, 1)).all():
        raise ValueError(f"y_true must hold 0 and 1 only, got {np.unique(y_true)[:5]}")
    return y_true, score


def _ratio(part: float, whole: float, name: str, undefined: list[str]) -> float:
    if whole == 0:
        undefined.append(name)
        return 0.0
    return float(part / whole)


def confusion(y_true: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Count int64 ``(n_classes, n_classes)``: row = truth, column = prediction."""
    flat = np.bincount(np.asarray(y_true) * n_classes + np.asarray(predicted), minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes)


def auc(y_true: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve; ties count half; NaN with one class only.

    Examples:
        >>> auc(np.array([0, 1, 1]), np.array([0.5, 0.5, 0.9]))
        0.75
    """
    positive = np.asarray(y_true).astype(bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    values, inverse = np.unique(np.asarray(score), return_inverse=True)
    negatives = np.bincount(inverse[~positive], minlength=len(values))
    positives = np.bincount(inverse[positive], minlength=len(values))
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (n_positive * n_negative))


def average_precision(y_true: np.ndarray, score: np.ndarray) -> float:
    """Mean precision over the steps of recall (no interpolation); NaN with one class only."""
    positive = np.asarray(y_true).astype(bool)
    if positive.all() or not positive.any():
        return float("nan")
    values, inverse = np.unique(-np.asarray(score), return_inverse=True)
    hits = np.cumsum(np.bincount(inverse[positive], minlength=len(values)))
    called = np.cumsum(np.bincount(inverse, minlength=len(values)))
    gained = np.diff(hits, prepend=0) / positive.sum()
    return float((hits / called * gained).sum())


def roc_curve(y_true: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false-positive rate, true-positive rate and threshold, from (0, 0) to (1, 1).

    One point a distinct score, the first with threshold infinity. Both classes must be present.
    """
    positive = np.asarray(y_true).astype(bool)
    values, inverse = np.unique(-np.asarray(score, np.float64), return_inverse=True)
    true = np.cumsum(np.bincount(inverse[positive], minlength=len(values))) / positive.sum()
    false = np.cumsum(np.bincount(inverse[~positive], minlength=len(values))) / (~positive).sum()
    return np.r_[0.0, false], np.r_[0.0, true], np.r_[np.inf, -values]
