"""Figures of the report: SVG text that takes its colours from the page, so that it fits light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from wsi_dino.evaluation.curves import MeanRoc, ScoredFold, area_under, roc_points

# Drawn in these colours, then replaced by what the style sheet of the page says.
_INK, _RULE = "#010203", "#040506"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_FROM_PAGE = {_INK: "currentColor", _RULE: "var(--rule)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES, 1)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "wsi-dino",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


class _Canvas:
    """A figure in the making and, afterwards, its SVG."""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure, self.axes = figure, axes
        self.svg = ""


@contextmanager
def _canvas(name: str, label: str, size_in: tuple[float, float], rows: Sequence[float] = (1,)) -> Iterator[_Canvas]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size_in, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=list(rows))[:, 0]
        canvas = _Canvas(figure, axes)
        yield canvas
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    canvas.svg = _for_page(buffer.getvalue(), name, label)


def _for_page(svg: str, name: str, label: str) -> str:
    """Strip what only a file needs, make ids unique in the page, and hand colours over to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for drawn, wanted in _FROM_PAGE.items():
        svg = svg.replace(drawn, wanted)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def roc_figure(folds: Sequence[ScoredFold], mean: MeanRoc | None) -> str:
    """Draw one thin curve a fold, their mean and its interval, and the diagonal of chance."""
    with _canvas("roc", "ROC curve of each fold and their mean", (4.4, 3.9)) as canvas:
        axis = canvas.axes[0]
        axis.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), label="chance")
        for index, fold in enumerate(fold for fold in folds if fold.has_both_classes):
            points = roc_points(fold.is_positive, fold.score)
            text = f"{fold.name}: {area_under(*points):.3f}"
            axis.plot(*points, color=_SERIES[1 + index % 5], linewidth=1.0, alpha=0.8, label=text)
        if mean is not None:
            axis.fill_between(mean.false_positive_rate, mean.low, mean.high, color=_SERIES[0], alpha=0.15, linewidth=0)
            axis.plot(mean.false_positive_rate, mean.mean, color=_SERIES[0], linewidth=2.2, label="mean")
        axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axis.set_aspect("equal")
        axis.legend(loc="lower right")
    return canvas.svg


def reliability_figure(predicted: np.ndarray, observed: np.ndarray, count: np.ndarray) -> str:
    """Draw observed frequency over predicted probability of each bin, and how many slides each bin holds.

    Args:
        predicted: float ``(n_bins,)``, mean score of each bin.
        observed: float ``(n_bins,)``, share of positives.
        count: int ``(n_bins,)``; empty bins are left out.
    """
    with _canvas("reliability", "Observed frequency over predicted probability", (4.4, 3.9), (4, 1)) as canvas:
        top, bottom = canvas.axes
        kept = count > 0
        top.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), label="perfect")
        top.plot(predicted[kept], observed[kept], color=_SERIES[0], marker="o", markersize=4, label="this model")
        top.set(ylabel="observed share", ylim=(-0.03, 1.03))
        top.legend(loc="upper left")
        bottom.bar(predicted[kept], count[kept], width=0.04, color=_SERIES[0], alpha=0.6, linewidth=0)
        bottom.set(xlabel="predicted probability", ylabel="slides", xlim=(-0.03, 1.03))
    return canvas.svg


def score_figure(scores: Sequence[tuple[str, np.ndarray]], thresholds: Sequence[float]) -> str:
    """Draw a histogram of scores for each class, with the thresholds of the folds.

    Args:
        scores: class name and float ``(n,)`` scores in 0..1.
        thresholds: one a fold.
    """
    with _canvas("scores", "Distribution of scores in each class", (4.4, 3.0)) as canvas:
        axis = canvas.axes[0]
        edges = np.linspace(0, 1, 21)
        for index, (name, values) in enumerate(scores):
            counts, _ = np.histogram(values, edges)
            colour = _SERIES[(index * 2) % len(_SERIES)]
            axis.stairs(counts, edges, fill=True, color=colour, alpha=0.35)
            axis.stairs(counts, edges, color=colour, linewidth=1.4, label=f"{_plain(name)} ({len(values)})")
        for index, threshold in enumerate(thresholds):
            label = "threshold of each fold" if index == 0 else None
            axis.axvline(threshold, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), label=label)
        axis.set(xlabel="score", ylabel="slides", xlim=(-0.01, 1.01))
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return canvas.svg


def training_figure(folds: Sequence[tuple[str, Sequence[float], Sequence[float], int]]) -> str:
    """Draw training (thin) and validation (bold) loss of each fold; a dot marks the epoch that was kept.

    Args:
        folds: name, training loss of each epoch, validation loss of each epoch, index of the epoch kept.
    """
    with _canvas("training", "Training and validation loss of each fold", (4.4, 3.0)) as canvas:
        axis = canvas.axes[0]
        for index, (name, train, validation, kept) in enumerate(folds):
            colour = _SERIES[1 + index % 5]
            axis.plot(np.arange(len(train)) + 1, train, color=colour, linewidth=0.8, alpha=0.6)
            axis.plot(np.arange(len(validation)) + 1, validation, color=colour, linewidth=1.6, label=name)
            if 0 <= kept < len(validation):
                axis.plot(kept + 1, validation[kept], color=colour, marker="o", markersize=5)
        axis.set(xlabel="epoch", ylabel="loss (thin: training, bold: validation)", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best")
    return canvas.svg


def coverage_figure(selective: Mapping[str, Any]) -> str:
    """Draw accuracy, with its interval, and AUC over the share of slides kept; see `selective_section`."""
    with _canvas("coverage", "Accuracy and AUC over the share of slides kept", (4.4, 3.2)) as canvas:
        axis, coverage, accuracy = canvas.axes[0], selective["coverage"], selective["accuracy"]
        low, high = (np.array(accuracy[name], float) for name in ("low", "high"))
        axis.fill_between(coverage, low, high, color=_SERIES[0], alpha=0.15, linewidth=0)
        axis.plot(coverage, accuracy["value"], color=_SERIES[0], linewidth=2, label="accuracy, 95 % band")
        known = [value if value is not None else np.nan for value in selective["auc"]]
        axis.plot(coverage, known, color=_SERIES[1], linewidth=1.4, linestyle="--", label="AUC")
        axis.set(xlabel="share of slides kept, the surest first", ylabel="accuracy, AUC", xlim=(1.01, 0.09))
        axis.set_ylim(min(0.45, float(np.nanmin([*low, *known])) - 0.03), 1.02)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return canvas.svg


def decision_figure(curve: Mapping[str, Any]) -> str:
    """Draw the net benefit of the score, of acting on all and on none; see `decision_section`."""
    with _canvas("decision", "Net benefit over the probability from which one would act", (4.4, 3.2)) as canvas:
        axis, threshold = canvas.axes[0], curve["threshold"]
        axis.axhline(0, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), label="act on none")
        axis.plot(
            threshold, curve["net_benefit_of_all"], color=_SERIES[1], linewidth=1.4, linestyle="--", label="on all"
        )
        axis.plot(threshold, curve["net_benefit"], color=_SERIES[0], linewidth=2, label="by this model")
        top = max(*curve["net_benefit"], *curve["net_benefit_of_all"], 0.02)
        axis.set(
            xlabel="probability from which one would act", ylabel="net benefit a slide", ylim=(-0.35 * top, 1.1 * top)
        )
        axis.set_xlim(0, 1)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return canvas.svg


def _plain(text: str) -> str:
    """Return `text` so that the legend shows it: one that starts with ``_`` it would hide."""
    return f" {text}" if text.startswith("_") else text
