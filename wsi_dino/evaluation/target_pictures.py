"""Pictures of survival, numbers and several labels: in the report, and as SVG and PNG beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.pictures import INK, SERIES, Picture, plain_text

_DASHED = (0, (4, 3))


def survival_picture(section: Mapping[str, Any], time: str) -> Picture:
    """Return Kaplan-Meier curves of the risk groups, with the number at risk below.

    Args:
        section: ``survival`` of metrics.json.
        time: name of its column.
    """
    groups = section["groups"]

    def draw(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 0.1 + 0.06 * len(groups)])
        for colour, group in zip(SERIES, groups, strict=False):
            curve = group["curve"]
            band = {"step": "post", "color": colour, "alpha": 0.15, "linewidth": 0}
            top.fill_between(curve["time"], curve["low"], curve["high"], **band)
            label = f"{group['name']}: {group['n']} patients, {group['n_events']} events"
            top.step(curve["time"], curve["survival"], where="post", color=colour, linewidth=1.8, label=label)
        top.axvline(section["horizon"], color=INK, linewidth=0.8, linestyle=_DASHED, label="horizon")
        top.set(ylabel="share without event", ylim=(-0.02, 1.02))
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        _draw_at_risk(bottom, groups, plain_text(time))

    return Picture("survival", "Kaplan-Meier curves of the risk groups", (5.2, 4.2), draw)


def _draw_at_risk(axis: Any, groups: Sequence[Mapping[str, Any]], time: str) -> None:
    for row, (colour, group) in enumerate(zip(SERIES, groups, strict=False)):
        for tick, n in zip(group["at_risk"]["time"], group["at_risk"]["n"], strict=True):
            axis.text(tick, -row, str(n), ha="center", va="center", color=colour, fontsize=8)
    axis.set(xlabel=f"{time}; below the curves: patients at risk", ylim=(-len(groups) + 0.4, 0.6), yticks=[])
    axis.set_xticks(groups[0]["at_risk"]["time"])
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)


def calibration_picture(section: Mapping[str, Any], time: str) -> Picture:
    """Return observed over predicted survival at the horizon, group by group."""
    rows = [row for row in section["calibration"]["groups"] if row["observed"] is not None]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=_DASHED, label="perfect")
        x, y = ([row[name] for row in rows] for name in ("predicted", "observed"))
        errors = [[row["observed"] - row["low"] for row in rows], [row["high"] - row["observed"] for row in rows]]
        if rows:
            axis.errorbar(x, y, np.maximum(errors, 0), color=SERIES[0], marker="o", markersize=5, linewidth=1.2,
                          capsize=2, label="groups of patients, 95 % interval")  # fmt: skip
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed survival (Kaplan-Meier)")
        axis.set_xlabel(f"predicted survival at {plain_text(time)} = {section['horizon']:.4g}")
        axis.set_aspect("equal")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return Picture("calibration", "Observed over predicted survival at the horizon", (4.4, 4.4), draw)


def scatter_picture(points: Sequence[tuple[float, float]], column: str) -> Picture:
    """Return predicted over true values.

    Args:
        points: true and predicted value of each slide.
        column: name of the values.
    """

    def draw(figure: Any) -> None:
        axis, (truth, said) = figure.subplots(), np.array(points).T
        low, high = min(truth.min(), said.min()), max(truth.max(), said.max())
        room = 0.04 * (high - low)
        ends = (low - room, high + room)
        axis.plot(ends, ends, color=INK, linewidth=0.8, linestyle=_DASHED, label="exact")
        alpha = float(np.clip(40 / np.sqrt(len(truth)) / 4, 0.15, 0.8))
        axis.plot(
            truth, said, "o", color=SERIES[0], markersize=4, alpha=alpha, markeredgewidth=0, label="held-out slide"
        )
        axis.set(xlim=ends, ylim=ends, xlabel=f"true {column}", ylabel=f"predicted {column}")
        axis.set_aspect("equal")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return Picture("scatter", "Predicted over true values", (4.4, 4.4), draw)


def label_picture(rows: Sequence[Mapping[str, Any]], macro: Mapping[str, Any]) -> Picture:
    """Return the AUC of each label and their mean, with intervals.

    Args:
        rows: ``labels`` of metrics.json.
        macro: ``value, low, high`` of the mean over labels.
    """
    named = [*((row["name"], row["auc"]) for row in rows), ("macro", macro)]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.axvline(0.5, color=INK, linewidth=0.8, linestyle=_DASHED)
        for place, (_, auc) in enumerate(named):
            if auc["value"] is None or not np.isfinite(auc["value"]):
                continue
            colour = SERIES[1] if place == len(named) - 1 else SERIES[0]
            axis.plot([auc["low"], auc["high"]], [place, place], color=colour, linewidth=2)
            axis.plot([auc["value"]], [place], "o", color=colour, markersize=6)
        axis.set_yticks(range(len(named)), [plain_text(name) for name, _ in named])
        axis.set(xlim=(min(0.4, *(a["low"] or 1 for _, a in named)) - 0.02, 1.02), xlabel="AUC")
        axis.set_ylim(len(named) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")

    return Picture("labels", "AUC of each label", (4.4, 1.2 + 0.3 * len(named)), draw)
