"""Figures of merit of a classifier; equal to scikit-learn's, and defined where a ratio is 0/0.

A metric is one entry of `METRICS`, at the end of this file, and nothing else: its function takes predictions and
weights of slides, so that the same code gives the figure of a fold and those of all bootstrap resamples.
docs/add-a-metric.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic, figure_of


def binary_metrics(y_true: np.ndarray, score: np.ndarray, threshold: float) -> dict[str, Any]:
    """Compute the metrics of two classes on one set of predictions.

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
    (tn, fp), (fn, tp) = confusion(y_true, (score >= threshold).astype(int), 2).tolist()
    counts = {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
    names = metric_names(2)
    if not len(score):
        return {**dict.fromkeys(names, float("nan")), **counts, "undefined": list(names)}
    wholes = {"auc": tp + fn and tn + fp, "average_precision": tp + fn and tn + fp, "precision": tp + fp}
    wholes |= {"recall": tp + fn, "specificity": tn + fp, "f1": 2 * tp + fp + fn}
    figures = _figures(FoldPredictions(y_true, score, [], threshold), names)
    return {**figures, **counts, "undefined": [name for name, whole in wholes.items() if not whole]}


def multiclass_metrics(y_true: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Compute the metrics of more than two classes; the class with the highest score is predicted.

    AUC is the mean over classes of one against the rest; precision, recall and F1 are means over
    classes (macro), 0/0 being 0.0 and named ``precision[2]`` under ``undefined``. The Brier score is
    the mean squared distance of the score vector from the one-hot truth.

    Args:
        y_true: ``(n,)`` class indices.
        scores: ``(n, n_classes)``, rows summing to one.
    """
    y_true, scores = np.asarray(y_true), np.asarray(scores, np.float64)
    table = confusion(y_true, scores.argmax(1), scores.shape[1])
    truth, called = table.sum(1), table.sum(0)
    wholes = {"precision": called, "recall": truth, "f1": truth + called, "auc": truth * (len(y_true) - truth)}
    undefined = [f"{name}[{c}]" for name, whole in wholes.items() for c in np.flatnonzero(whole == 0)]
    figures = _figures(FoldPredictions(y_true, scores, []), metric_names(scores.shape[1]))
    return {**figures, "undefined": undefined}


def _figures(predictions: FoldPredictions, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: figure_of(METRICS[name].compute, predictions) for name in names}


def _checked(y_true: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y_true, score = np.asarray(y_true).astype(np.int64), np.asarray(score, np.float64)
    if y_true.shape != score.shape or y_true.ndim != 1:
        raise ValueError(f"expected y_true and score of one shape (n,), got {y_true.shape} and {score.shape}")
    if not np.isfinite(score).all():
        raise ValueError(f"score has {int((~np.isfinite(score)).sum())} values that are not finite")
    if not np.isin(y_true, (0, 1)).all():
        raise ValueError(f"y_true must hold 0 and 1 only, got {np.unique(y_true)[:5]}")
    return y_true, score


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
    return float(weighted_auc(np.asarray(y_true).astype(bool), np.asarray(score), np.ones((1, len(score))))[0])


def roc_curve(y_true: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false-positive rate, true-positive rate and threshold, from (0, 0) to (1, 1).

    One point a distinct score, the first with threshold infinity. Both classes must be present.
    """
    positive = np.asarray(y_true).astype(bool)
    values, inverse = np.unique(-np.asarray(score, np.float64), return_inverse=True)
    true = np.cumsum(np.bincount(inverse[positive], minlength=len(values))) / positive.sum()
    false = np.cumsum(np.bincount(inverse[~positive], minlength=len(values))) / (~positive).sum()
    return np.r_[0.0, false], np.r_[0.0, true], np.r_[np.inf, -values]


def weighted_auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC for each row of slide weights, by ranks; ties count half; NaN where a class has no weight.

    Args:
        positive: bool ``(n,)``.
        score: ``(n,)``.
        weights: ``(n_rows, n)``.

    Returns:
        float64 ``(n_rows,)``.
    """
    order = np.argsort(score, kind="stable")
    score, positive, weights = score[order], positive[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    positives = np.add.reduceat(weights * positive, starts, axis=1)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(1) * negatives.sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray((positives * below).sum(1) / pairs)


def _auc(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    if fold.scores.ndim == 1:
        return weighted_auc(fold.y_true == 1, fold.scores, weights)
    classes = range(fold.scores.shape[1])
    return np.mean([weighted_auc(fold.y_true == c, fold.scores[:, c], weights) for c in classes], axis=0)


def _average_precision(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-fold.scores, kind="stable")
    score, positive, weights = fold.scores[order], (fold.y_true == 1)[order], weights[:, order]
    ends = np.flatnonzero(np.r_[score[1:] != score[:-1], True])
    hits = np.cumsum(weights * positive, axis=1)[:, ends]
    called = np.cumsum(weights, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((hits / np.maximum(called, 1e-300) * gained).sum(1) / hits[:, -1])


def _table(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    """Confusion ``(n_rows, truth, prediction)``, weighted."""
    binary = fold.scores.ndim == 1
    predicted = (fold.scores >= fold.threshold).astype(int) if binary else fold.scores.argmax(1)
    n_classes = 2 if binary else fold.scores.shape[1]
    cell = np.eye(n_classes**2)[fold.y_true * n_classes + predicted]
    return np.asarray(weights @ cell).reshape(len(weights), n_classes, n_classes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; 0/0 is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole > 0)


def _accuracy(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    table = _table(fold, weights)
    return _ratio(np.trace(table, axis1=1, axis2=2), table.sum((1, 2)))


def _per_class(fold: FoldPredictions, weights: np.ndarray, kind: str) -> np.ndarray:
    table = _table(fold, weights)
    hits, truth, called = np.diagonal(table, axis1=1, axis2=2), table.sum(2), table.sum(1)
    figures = {"precision": (hits, called), "recall": (hits, truth), "f1": (2 * hits, truth + called)}
    return _ratio(*figures[kind])


def macro_statistic(kind: str) -> Statistic:
    """Return the figure ``precision``, ``recall`` or ``f1`` as its mean over classes."""
    return lambda fold, weights: _per_class(fold, weights, kind).mean(1)


def positive_class_statistic(kind: str) -> Statistic:
    """Return the figure ``precision``, ``recall`` or ``f1`` of the positive of two classes."""
    return lambda fold, weights: _per_class(fold, weights, kind)[:, 1]


def _usual(kind: str) -> Statistic:
    """Figure of the positive class for two classes, mean over classes for more."""
    of_positive, macro = positive_class_statistic(kind), macro_statistic(kind)
    return lambda fold, weights: (of_positive if fold.scores.ndim == 1 else macro)(fold, weights)


def _balanced_accuracy(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    """Mean recall of the classes that are there; NaN where there are fewer than two."""
    n_present = (_table(fold, weights).sum(2) > 0).sum(1)
    mean = _ratio(_per_class(fold, weights, "recall").sum(1), n_present)
    return np.where(n_present > 1, mean, np.nan)


def _specificity(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    return _per_class(fold, weights, "recall")[:, 0]


def _brier(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    truth = fold.y_true if fold.scores.ndim == 1 else np.eye(fold.scores.shape[1])[fold.y_true]
    error = (fold.scores - truth) ** 2
    return np.asarray(weights @ (error if error.ndim == 1 else error.sum(1)) / weights.sum(1))


def of_slides(function: Callable[[np.ndarray, np.ndarray, float], float]) -> Statistic:
    """Make a statistic of a plain function of labels, scores and threshold, such as scikit-learn has.

    For each row of weights the function is called with every slide as often as it was drawn, so that an interval of
    2,000 resamples calls it 2,000 times a fold: right for any function, slower than one that takes weights.

    Examples:
        >>> share_called = of_slides(lambda y_true, scores, threshold: float((scores >= threshold).mean()))
        >>> fold = FoldPredictions(np.array([0, 1]), np.array([0.2, 0.9]), ["a", "b"], 0.5)
        >>> share_called(fold, np.array([[1, 1], [0, 2], [3, 1]])).tolist()
        [0.5, 1.0, 0.25]
    """

    def compute(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
        figures = []
        for row in weights:
            drawn = np.repeat(np.arange(len(row)), row.astype(np.int64))
            figures.append(function(fold.y_true[drawn], fold.scores[drawn], fold.threshold))
        return np.asarray(figures, np.float64)

    return compute


@dataclass(frozen=True)
class Metric:
    """A figure of merit of slides that belong to classes.

    Attributes:
        compute: a function of (`FoldPredictions`, weights float64 ``(n_rows, n_slides)``) to one figure for each row,
            NaN where there is none; `of_slides` makes one of a plain function. ``scores`` are ``(n,)`` for two
            classes, to be cut at ``threshold``, and ``(n, n_classes)`` for more.
        title: heading in the report.
        of_two, of_more: whether it is defined for two classes, for more.
        in_report: whether the report shows it; metrics.json has all.
        lower_is_better: the report says so.
    """

    compute: Statistic
    title: str = ""
    of_two: bool = True
    of_more: bool = True
    in_report: bool = True
    lower_is_better: bool = False

    @property
    def heading(self) -> str:
        """What the report calls it."""
        return f"{self.title} (lower is better)" if self.lower_is_better else self.title


def _named(metrics: dict[str, Metric]) -> dict[str, Metric]:
    return {name: replace(metric, title=metric.title or name) for name, metric in metrics.items()}


METRICS: dict[str, Metric] = _named({
    "auc": Metric(_auc, "AUC"),
    "average_precision": Metric(_average_precision, of_more=False, in_report=False),
    "accuracy": Metric(_accuracy),
    "balanced_accuracy": Metric(_balanced_accuracy, "balanced acc."),
    "precision": Metric(_usual("precision")),
    "recall": Metric(_usual("recall")),
    "specificity": Metric(_specificity, of_more=False),
    "f1": Metric(_usual("f1"), "F1"),
    "brier": Metric(_brier, in_report=False, lower_is_better=True),
})  # fmt: skip
STATISTICS: dict[str, Statistic] = {name: metric.compute for name, metric in METRICS.items()}


def metric_names(n_classes: int) -> tuple[str, ...]:
    """Return the names of the metrics that are defined for so many classes, in the order of `METRICS`."""
    return tuple(name for name, metric in METRICS.items() if (metric.of_two if n_classes == 2 else metric.of_more))
