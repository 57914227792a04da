"""The report of a segmentation experiment: one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from wsi_dino.evaluation.pictures import MARKERS, SERIES, Picture, picture_uri
from wsi_dino.segmentation.comparison import compare_results, read_results
from wsi_dino.segmentation.example_pictures import feature_pictures, overlay_example
from wsi_dino.segmentation.overlays import COLOURS
from wsi_dino.segmentation.results import Outcome

_LISTED_CASES = 3000


def render_report(outcome: Outcome, metrics: Mapping[str, Any]) -> str:
    """Return the report as one HTML page: no script, no network, every text escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "uri": picture_uri}
    source = resources.files("wsi_dino.segmentation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    pictures = [_curve_picture(outcome), _dice_picture(outcome)]
    compared = _compared(outcome)
    if len(compared) > 1:
        pictures.append(_comparison_picture(compared, metrics))
    return environment.from_string(source).render(
        metrics=metrics,
        classes=list(outcome.dataset.classes.values()),
        colours=[_css(COLOURS[(value - 1) % len(COLOURS)]) for value in outcome.dataset.classes],
        examples=[_example(outcome, row) for row in _chosen(outcome)],
        features=feature_pictures(outcome),
        figures=[Markup(picture.page_svg()) for picture in pictures],
        compared=compared,
        published=[_published(table, metrics) for table in metrics["published"]],
        rows=outcome.scores[:_LISTED_CASES],
        settings=_settings(metrics),
        remarks=_remarks(outcome),
        parameters=outcome.fold_rows[0]["parameters"],
    )


def _compared(outcome: Outcome) -> list[dict[str, Any]]:
    """Return all results of the dataset in this run beside this one."""
    label = f"{outcome.layout.data.name}/{outcome.layout.results.name}"
    metrics = json.loads((outcome.layout.results / "metrics.json").read_text(encoding="utf-8"))
    results = read_results(outcome.layout.run.path, metrics)
    own = next((result for result in results if result.label == label), None)
    return compare_results(own, results) if own is not None else []


def _comparison_picture(compared: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> Picture:
    shown = [row for row in compared if np.isfinite(row["dice"])]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colours = [SERIES[0] if row["is_this"] else SERIES[1] for row in shown]
        axes.barh([row["label"] for row in shown], [row["dice"] for row in shown], color=colours)
        axes.axvline(metrics["baselines"]["mean-shape"]["dice"]["mean"], color="#1b1f24", linestyle="--", linewidth=1)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("Dice (dashed: mean shape of the training labels)")

    return Picture("results", "Dice of all results of this dataset in the run", (7.4, 1.2 + 0.4 * len(shown)), draw)


def _published(table: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of the paper with our figures in its columns, as far as we have such figures."""
    names = {"dice": "dice", "hd95": "hd95_mm", "precision": "precision", "recall": "recall"}
    ours = []
    for column in table["columns"]:
        value = metrics[names[column["metric"]]]["mean"] if column["metric"] in names else None
        factor = 100 if column["unit"] == "percent" else 1
        ours.append(f"{factor * value:.2f}" if isinstance(value, float) and np.isfinite(value) else "–")
    return {**table, "ours": ours, "modality": any(row["modality"] for row in table["rows"])}


def _css(colour: Sequence[int]) -> str:
    return f"rgb({colour[0]}, {colour[1]}, {colour[2]})"


def _chosen(outcome: Outcome) -> list[tuple[str, Mapping[str, Any], float]]:
    """Return the worst, the median and the best held-out case by mean Dice."""
    rows = [(row, _mean_dice(row)) for row in outcome.case_rows if row["status"] == "done"]
    ranked = sorted(((row, dice) for row, dice in rows if np.isfinite(dice)), key=lambda pair: pair[1])
    if not ranked:
        return []
    places = {"worst": 0, "median": len(ranked) // 2, "best": len(ranked) - 1}
    return [(name, *ranked[index]) for name, index in places.items()]


def _mean_dice(row: Mapping[str, Any]) -> float:
    values = [score["dice"] for score in row["scores"] if score["dice"] is not None]
    return float(np.mean(values)) if values else float("nan")


def _example(outcome: Outcome, chosen: tuple[str, Mapping[str, Any], float]) -> dict[str, Any]:
    name, row, dice = chosen
    shown = overlay_example(outcome, row)
    per_class = ", ".join(f"{score['class']} {_number(score['dice'])}" for score in row["scores"])
    return {"name": name, "case_id": row["case_id"], "fold": row["fold"], "dice": dice, "per_class": per_class, **shown}


def _curve_picture(outcome: Outcome) -> Picture:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row in outcome.fold_rows:
            colour = SERIES[row["fold"] % len(SERIES)]
            epochs = [point["epoch"] + 1 for point in row["history"]]
            axes.plot(epochs, [point["loss"] for point in row["history"]], color=colour, label=f"fold {row['fold']}")
            held_out = [(point["epoch"] + 1, point["val_loss"]) for point in row["history"] if "val_loss" in point]
            axes.plot(*zip(*held_out, strict=True), color=colour, marker="o", markersize=3, linestyle="--")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("Dice + cross-entropy loss")
        axes.legend()

    return Picture("curves", "Loss of training (solid) and of held-out cases (dashed) by epoch", (5.4, 3.2), draw)


def _dice_picture(outcome: Outcome) -> Picture:
    names = list(outcome.dataset.classes.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        rng = np.random.default_rng(0)
        for i, name in enumerate(names):
            values = [row["dice"] for row in outcome.scores if row["class"] == name and row["dice"] is not None]
            axes.scatter(
                values, i + rng.uniform(-0.25, 0.25, len(values)), s=9, alpha=0.6, color=SERIES[i % len(SERIES)],
                marker=MARKERS[i % len(MARKERS)],
            )  # fmt: skip
            if values:
                axes.plot([np.median(values)] * 2, [i - 0.35, i + 0.35], color="#1b1f24")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("Dice of each held-out case (line: median)")

    return Picture("dice", "Dice of each held-out case by class", (5.4, 1.2 + 0.6 * len(names)), draw)


def _settings(metrics: Mapping[str, Any]) -> dict[str, str]:
    protocol = metrics["protocol"]
    training = protocol["training"]
    return {
        "split": protocol["split"],
        "averaging": protocol["averaging"],
        "model": ", ".join(f"{key} {value}" for key, value in protocol["model"].items() if value not in ("", [], 0)),
        "training": ", ".join(f"{key} {value}" for key, value in training.items()),
        "weights": protocol["selection"],
        "Dice": metrics["dice"]["convention"],
        "HD95": f"{metrics['hd95_mm']['definition']}, in mm; one empty mask: {metrics['hd95_mm']['empty_masks']}",
    }


def _remarks(outcome: Outcome) -> list[str]:
    of_cases = [f"{row['case_id']}: {text}" for row in outcome.prepared.rows for text in row.get("remarks", ())]
    return of_cases


def _number(value: Any) -> str:
    if value in ("inf", np.inf):
        return "∞"
    if value is None or not isinstance(value, int | float) or not np.isfinite(value):
        return "–"
    return f"{value:.3f}"
