"""The two figures by which the paper compares encoders: bars over metrics, radar over tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.pictures import HATCHES, INK, MARKERS, RULE, SERIES, Picture, plain_text

TITLES = {"auc": "AUC", "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1"}
_BARS_WIDTH_IN = 9.0
_MANY_BARS = 4
_MIN_TASKS = 3
_LEGEND_LETTERS = 100  # as many stand side by side over the bars
_HATCH = (1.0, 1.0, 1.0, 0.45)


def bar_picture(section: Mapping[str, Any], name: str) -> Picture:
    """Return bars of every figure for every encoder on one task, whiskers being their intervals."""
    encoders = section["encoders"]
    names = [plain_text(encoder["encoder"]) for encoder in encoders]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        _bars(axis, list(TITLES.values()), names, [
            [encoder["figures"][metric] for metric in TITLES] for encoder in encoders
        ])  # fmt: skip
        _above(axis, names, section["task"])

    size_in = (_BARS_WIDTH_IN, _bars_height_in(names))
    return Picture(name, "Figures of each encoder with 95 % intervals", size_in, draw)


def task_bar_picture(sections: Sequence[Mapping[str, Any]], name: str) -> Picture:
    """Return bars of the AUC of every encoder on every task."""
    encoders = common_encoders(sections)

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        figures = [[_figures_of(section, encoder)["auc"] for section in sections] for encoder in encoders]
        _bars(axis, [section["task"] for section in sections], [plain_text(e) for e in encoders], figures)
        _above(axis, encoders, "AUC")
        axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))

    size_in = (_BARS_WIDTH_IN, _bars_height_in(encoders))
    return Picture(name, "AUC of each encoder on each task", size_in, draw)


def _bars(axis: Any, groups: Sequence[str], names: Sequence[str], figures: Sequence[Sequence[Any]]) -> None:
    """Draw ``figures[bar][group]`` as groups of bars with their values above the whiskers."""
    width = 0.84 / len(names)
    for index, (name, each) in enumerate(zip(names, figures, strict=True)):
        x = np.arange(len(groups)) + (index - (len(names) - 1) / 2) * width
        value = np.array([_or_nan(figure["value"]) for figure in each])
        low, high = (np.array([_or_nan(figure[bound]) for figure in each]) for bound in ("low", "high"))
        colour, hatch = SERIES[index % len(SERIES)], HATCHES[index % len(HATCHES)]
        axis.bar(x, value, width * 0.92, color=colour, hatch=hatch, edgecolor=_HATCH, linewidth=0, label=name)
        whiskers = np.nan_to_num(np.abs(np.stack([value - low, high - value])))
        axis.errorbar(x, value, whiskers, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
        for position, number, top in zip(x, value, np.fmax(value, high), strict=True):
            if not math.isnan(number):
                turned = 90 if len(names) * len(groups) > 5 * _MANY_BARS else 0
                axis.text(position, top + 0.015, f"{number:.2f}", ha="center", va="bottom", fontsize=8, rotation=turned)
    axis.set_xticks(np.arange(len(groups)), [plain_text(group) for group in groups])
    axis.set(ylim=(0, 1.12), xlim=(-0.55, len(groups) - 0.45))
    axis.set_yticks(np.arange(0, 1.01, 0.2))
    axis.grid(axis="x", visible=False)


def _above(axis: Any, names: Sequence[str], title: str) -> None:
    axis.set_ylabel(title)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=_legend_columns(names), fontsize=9, handlelength=1.6)


def _legend_columns(names: Sequence[str]) -> int:
    """Return how many names of this length stand side by side."""
    return max(1, min(len(names), _LEGEND_LETTERS // (max(map(len, names)) + 6)))


def _bars_height_in(names: Sequence[str]) -> float:
    return 3.6 + 0.2 * math.ceil(len(names) / _legend_columns(names))


def radar_picture(sections: Sequence[Mapping[str, Any]], name: str) -> Picture | None:
    """Return one radar for each figure, an axis for each task and a line for each encoder; None below three tasks."""
    encoders = common_encoders(sections)
    if len(sections) < _MIN_TASKS or not encoders:
        return None

    def draw(figure: Any) -> None:
        figure.get_layout_engine().set(h_pad=0.12, hspace=0.06)
        axes = figure.subplots(2, 3, subplot_kw={"projection": "polar"}).ravel()
        for axis, (metric, title) in zip(axes, TITLES.items(), strict=False):
            values = {e: [_or_nan(_figures_of(s, e)[metric]["value"]) for s in sections] for e in encoders}
            _radar(axis, title, [section["task"] for section in sections], values)
        handles, labels = axes[0].get_legend_handles_labels()
        axes[5].set_axis_off()
        axes[5].legend(handles, labels, loc="center", fontsize=11, handlelength=2.6, labelspacing=0.9)

    return Picture(name, "Every encoder over the tasks, a radar for each figure", (11.0, 8.0), draw)


def _radar(axis: Any, title: str, tasks: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    lowest = np.nanmin([number for each in values.values() for number in each])
    centre = float(np.clip(math.floor(10 * lowest - 0.5) / 10, 0, 0.5))
    angles = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
    axis.set_theta_offset(np.pi / 2)
    axis.set_theta_direction(-1)
    for index, (encoder, each) in enumerate(values.items()):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        closed = [*each, each[0]]
        axis.plot([*angles, angles[0]], closed, color=colour, marker=marker, markersize=4.5, linewidth=1.6,
                  label=plain_text(encoder))  # fmt: skip
    rings = np.arange(centre, 1.01, 0.1 if centre >= 0.5 else 0.2)
    axis.set_ylim(centre, 1.0)
    axis.set_yticks(rings[1:], [""] * len(rings[1:]))
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for ring in rings[1:]:  # tick labels would lie below the lines
        axis.text(np.pi / len(tasks), ring, f"{ring:.1f}", fontsize=8, ha="center", va="center", bbox=halo, zorder=6)
    axis.set_xticks(angles, [_short(task, tasks) for task in tasks], fontsize=10)
    axis.tick_params(axis="x", pad=6)
    axis.spines["polar"].set_color(RULE)
    axis.set_title(f"{title} (centre {centre:.1f})", fontsize=11, pad=14)


def _short(task: str, tasks: Sequence[str]) -> str:
    """Leave out what all names begin with, up to a dash: bcnb-er of all-bcnb is er."""
    heads = {each.partition("-")[0] for each in tasks}
    return task.partition("-")[2] if len(heads) == 1 and all("-" in each for each in tasks) else task


def common_encoders(sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the encoders that every task has, in the order of the first."""
    each = [[encoder["encoder"] for encoder in section["encoders"]] for section in sections]
    return [name for name in each[0] if all(name in others for others in each)] if each else []


def _figures_of(section: Mapping[str, Any], encoder: str) -> Mapping[str, Any]:
    return next(each["figures"] for each in section["encoders"] if each["encoder"] == encoder)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
