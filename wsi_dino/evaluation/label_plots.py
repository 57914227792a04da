"""Pictures of several labels: their AUCs with intervals, and their ROC curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.curves import roc_points
from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.pictures import INK, MARKERS, SERIES, Picture, plain_text

_GRID = np.linspace(0, 1, 201)
_STYLES = ("-", "--", ":")


def forest_picture(
    labels: Mapping[str, Any], check: Mapping[str, Any] | None = None, model: str = "linear probe"
) -> Picture:
    """Return the AUC of every label with its interval, that of the check (`metrics["check"]`) below it."""
    others = (check or {}).get("labels", {})
    series = [(model, {name: label["auc"] for name, label in labels.items()})]
    if others:
        series.append((str((check or {})["model"]), {name: label["auc"] for name, label in others.items()}))

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for number, (title, aucs) in enumerate(series):
            offset = (number - (len(series) - 1) / 2) * 0.28
            for row, name in enumerate(labels):
                _point(axis, aucs.get(name) or {}, row + offset, number, title if row == 0 else None)
        axis.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axis.set_yticks(range(len(labels)), [plain_text(name) for name in labels])
        axis.set(xlabel="AUC", ylim=(len(labels) - 0.5, -0.5))
        low = min([0.45, *(f["low"] for _, a in series for f in a.values() if f.get("low") is not None)])
        axis.set_xlim(max(0.0, low - 0.02), 1.01)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return Picture("forest", "AUC of each label with its interval", (7.5, 1.2 + 0.36 * len(labels)), draw)


def _point(axis: Any, auc: Mapping[str, Any], y: float, number: int, title: str | None) -> None:
    value = auc.get("value")
    if value is None:
        axis.plot([], [], color=SERIES[number], marker=MARKERS[number], label=title)
        return
    if auc.get("low") is not None:
        axis.plot([auc["low"], auc["high"]], [y, y], color=SERIES[number], linewidth=1.4)
    axis.plot(value, y, color=SERIES[number], marker=MARKERS[number], markersize=5, linestyle="", label=title)


def label_roc_picture(folds: Sequence[FoldScores], label_names: Sequence[str]) -> Picture:
    """Return the ROC curve of every label, the mean over the folds that have both classes."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        for label, name in enumerate(label_names):
            curve = mean_curve(folds, label)
            if curve is not None:
                style = _STYLES[label // len(SERIES) % len(_STYLES)]
                axis.plot(_GRID, curve, color=SERIES[label % len(SERIES)], linestyle=style, label=plain_text(name))
        axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axis.set_aspect("equal")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

    return Picture("label-roc", "ROC curve of each label", (7.5, 4.6), draw)


def mean_curve(folds: Sequence[FoldScores], label: int) -> np.ndarray | None:
    """Return the mean true positive rate float64 ``(201,)`` over an even grid of false positive rates, or None."""
    curves = []
    for fold in folds:
        known = ~np.isnan(fold.targets[:, label])
        positive, score = fold.targets[known, label] == 1, fold.scores[known, label]
        if positive.any() and not positive.all():
            curves.append(np.interp(_GRID, *roc_points(positive, score)))
    return np.mean(curves, axis=0) if curves else None
