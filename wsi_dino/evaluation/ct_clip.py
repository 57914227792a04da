"""CT-CLIP's way of judging, for comparison only: it chooses its cuts on the labels it is then judged by.

Source: CT-CLIP's ``scripts/bootstrap_values.py``. For each label, of 100 cuts between 0 and 1 the one whose point is
nearest to the ROC plane's corner is taken (of equals the highest), on the evaluated set itself. Precision is that of
the positive class, accuracy that of the label, F1 the mean over both classes weighed by their size (so that it lies far
above the positive class's); all are means over labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.metrics import auc

_GRID = np.linspace(0, 1, 100)
FIGURES = ("auc", "f1_two_class_weighted", "accuracy", "precision")


def ct_clip_figures(targets: np.ndarray, scores: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Return `FIGURES` of each label and their means, flagged as optimistic.

    Args:
        targets: float ``(n, n_labels)`` of 0, 1 and NaN (unknown) of the test set.
        scores: float ``(n, n_labels)`` probabilities.
        label_names: ``(n_labels,)``; a label of one class only is left out of the means.

    Examples:
        >>> figures = ct_clip_figures(np.array([[0.0], [0.0], [1.0]]), np.array([[0.1], [0.6], [0.8]]), ["Nodule"])
        >>> figures["summary"]["accuracy"], figures["optimistic"]
        (1.0, True)
    """
    labels = {}
    for label, name in enumerate(label_names):
        known = ~np.isnan(targets[:, label])
        truth, score = targets[known, label] == 1, scores[known, label]
        if truth.any() and not truth.all():
            labels[name] = _figures(truth, score)
    summary = {name: float(np.mean([figures[name] for figures in labels.values()])) for name in FIGURES if labels}
    return {
        "optimistic": True,
        "convention": "CT-CLIP: cut of each label chosen on the test labels (ROC corner, 100 steps)",
        "labels": labels,
        "summary": summary,
    }


def corner_cut(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the cut of the grid nearest to the corner; a score above it is a yes."""
    said = score[None, :] > _GRID[:, None]
    sensitivity = (said & truth).sum(1) / truth.sum()
    false_alarms = (said & ~truth).sum(1) / (~truth).sum()
    distance = np.hypot(1 - sensitivity, false_alarms)
    return float(_GRID[np.flatnonzero(distance <= distance.min())[-1]])


def _figures(truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    cut = corner_cut(truth, score)
    said = score > cut
    tp, fp = int((said & truth).sum()), int((said & ~truth).sum())
    fn, tn = int((~said & truth).sum()), int((~said & ~truth).sum())
    share = float(truth.mean())
    f1 = _ratio(2 * tp, 2 * tp + fp + fn) * share + _ratio(2 * tn, 2 * tn + fp + fn) * (1 - share)
    return {
        "auc": auc(truth, score),
        "f1_two_class_weighted": f1,
        "accuracy": (tp + tn) / len(truth),
        "precision": _ratio(tp, tp + fp),
        "threshold": cut,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
