"""The report of one cross-validated task: one HTML file that says first what was found and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from wsi_dino.evaluation.curves import ScoredFold, mean_roc
from wsi_dino.evaluation.metrics import METRICS
from wsi_dino.evaluation.pictures import picture_uri
from wsi_dino.evaluation.plots import reliability_figure, roc_figure, score_figure, training_figure
from wsi_dino.evaluation.report_looking import LookingSection, looking_html
from wsi_dino.evaluation.report_statistics import statistics_html
from wsi_dino.evaluation.target_report import TITLES, TargetPart

_LISTED_PREDICTIONS = 5000


@dataclass(frozen=True)
class ExampleTile:
    """A tile that got much attention.

    Attributes:
        x, y: top-left corner in level-0 px.
        lift: its attention weight over the even share 1 / n_tiles.
        pixels: uint8 ``(height, width, 3)``, or None when the slide could not be read.
    """

    x: int
    y: int
    lift: float
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Example:
    """A held-out slide shown with what the model looked at.

    Attributes:
        is_right: None where there is no right and wrong.
        overview: uint8 ``(height, width, 3)`` picture of the slide with its attention, or None.
        note: what could not be shown and why, or an empty text.
    """

    slide_id: str
    target: str
    score: float
    fold: int
    is_right: bool | None
    tiles: Sequence[ExampleTile] = ()
    overview: np.ndarray | None = None
    note: str = ""


@dataclass(frozen=True)
class TrainingCurve:
    """Losses of one fold, one value an epoch, and the index of the epoch that was kept."""

    name: str
    train_loss: Sequence[float]
    val_loss: Sequence[float]
    kept: int


@dataclass(frozen=True)
class ReportInput:
    """All that the report tells.

    Attributes:
        metrics: the content of metrics.json.
        predictions: rows of predictions.csv of the test subset: ``fold, patient_id, slide_id, target,
            label, predicted, score`` and ``score_<class>`` for each class.
        curves: losses of each fold.
        examples: slides to show.
        looking: tiles of each class, and faithfulness of attention.
        command: what to type to get the same again, `command_place` in which folder.
        settings, training, encoder_facts: what else there is to say, in order.
        part: of a target that is not one class: what it says.
    """

    metrics: Mapping[str, Any]
    predictions: Sequence[Mapping[str, Any]]
    curves: Sequence[TrainingCurve] = ()
    examples: Sequence[Example] = ()
    command: str = ""
    command_place: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    encoder_facts: Mapping[str, str] = field(default_factory=dict)
    looking: LookingSection | None = None
    part: TargetPart | None = None


def render_report(content: ReportInput) -> str:
    """Return the report as one self-contained HTML page: no script, no network, every text escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "percent": _percent, "lift": _lift, "cell": _cell}
    source = resources.files("wsi_dino.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    figures = {name: Markup(svg) for name, svg in _figures(content).items()}
    return environment.from_string(source).render(**_context(content), figures=figures)


def _context(content: ReportInput) -> dict[str, Any]:
    metrics = content.metrics
    return {
        **metrics,
        **(_class_context(content) if content.part is None else _part_context(content.part, metrics)),
        "summary": {name: _interval(value) for name, value in metrics["summary"].items()},
        "exclusions_by_reason": _by_reason(metrics["exclusions"]),
        "examples": [_example(example) for example in content.examples],
        "predictions": content.predictions if len(content.predictions) <= _LISTED_PREDICTIONS else [],
        "versions": metrics["provenance"]["versions"],
        "looking": looking_html(content.looking),
        "permuted_labels": metrics.get("permuted_labels"),
        "model_name": "" if metrics.get("result_name") in (None, metrics["encoder"]) else metrics["model"],
        "tile_score": metrics["protocol"].get("tile_score", "attention"),
        "command": content.command,
        "command_place": content.command_place,
        "settings": content.settings,
        "training": content.training,
        "encoder_facts": content.encoder_facts,
    }


def _class_context(content: ReportInput) -> dict[str, Any]:
    metrics = content.metrics
    auc = _interval(metrics["summary"].get("auc", {}))
    return {
        "part": None,
        "figure_name": "AUC",
        "auc": auc,
        "verdict": verdict(auc, metrics["classes"]),
        "has_threshold": True,
        "metric_names": [name for name in METRICS if METRICS[name].in_report and name in metrics["summary"]],
        "metric_titles": {name: metric.heading for name, metric in METRICS.items()},
        "confusion": confusion_table(content.predictions, metrics["classes"]),
        "statistics": statistics_html(metrics),
    }


def _part_context(part: TargetPart, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "part": part,
        "figure_name": part.headline.title,
        "auc": _interval(metrics["summary"][part.headline.key]),
        "verdict": part.verdict,
        "has_threshold": metrics["folds"][0].get("threshold") is not None,
        "metric_names": list(metrics["summary"]),
        "metric_titles": {name: TITLES.get(name, name.removeprefix("auc[").rstrip("]")) for name in metrics["summary"]},
    }


def _interval(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "std": None, **value}


def verdict(auc: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Say in words what an AUC with its interval means.

    Returns:
        ``tone`` (good, doubt or bad), ``headline`` and ``meaning``.

    Examples:
        >>> verdict({"value": 0.61, "low": 0.47, "high": 0.74}, ["Negative", "Positive"])["headline"]
        'Not shown.'
        >>> verdict({"value": 0.83, "low": 0.75, "high": 0.90}, ["Negative", "Positive"])["tone"]
        'good'
    """
    value, low, high = auc["value"], auc["low"], auc["high"]
    if not all(isinstance(number, int | float) and np.isfinite(number) for number in (value, low, high)):
        return {"tone": "doubt", "headline": "No answer.", "meaning": "The AUC could not be computed; see below why."}
    pairs = _pairs(value, classes)
    if low > 0.5:
        return {"tone": "good", "headline": "Yes, better than chance.", "meaning": pairs}
    if high < 0.5:
        reason = "That is worse than chance (0.5) by more than luck explains: look for swapped labels or a leak."
        return {"tone": "bad", "headline": "No: worse than chance.", "meaning": f"{pairs} {reason}"}
    reason = "The interval holds 0.5, which is what guessing gives: these slides do not show that it can."
    return {"tone": "doubt", "headline": "Not shown.", "meaning": f"{pairs} {reason}"}


def _pairs(value: float, classes: Sequence[str]) -> str:
    if len(classes) == 2:
        whom = f"a {classes[1]} slide gets a higher score than a {classes[0]} one"
    else:
        whom = "a slide of a class gets a higher score for it than a slide of another class, averaged over classes,"
    return f"Of 100 random pairs, {whom} in about {round(100 * value)} (guessing: 50)."


def confusion_table(predictions: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Count held-out slides by true class (rows) and class said (cells).

    Returns:
        One row a class: ``name`` and ``cells``, each with ``count``, ``share`` of its row and ``hit``.
    """
    counts = {truth: dict.fromkeys(classes, 0) for truth in classes}
    for row in predictions:
        counts[classes[int(row["label"])]][str(row["predicted"])] += 1
    table = []
    for truth in classes:
        total = sum(counts[truth].values())
        cells = [
            {"count": count, "share": count / total if total else None, "hit": said == truth}
            for said, count in counts[truth].items()
        ]
        table.append({"name": truth, "cells": cells})
    return table


def _by_reason(exclusions: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for row in exclusions:
        result.setdefault(str(row["reason"]), []).append(str(row["slide_id"]))
    return result


def _example(example: Example) -> dict[str, Any]:
    return {
        "slide_id": example.slide_id,
        "target": example.target,
        "score": example.score,
        "fold": example.fold,
        "is_right": example.is_right,
        "note": example.note,
        "map": None if example.overview is None else picture_uri(example.overview),
        "tiles": [
            {
                "x": tile.x,
                "y": tile.y,
                "lift": tile.lift,
                "picture": None if tile.pixels is None else picture_uri(tile.pixels),
            }
            for tile in example.tiles
        ],
    }


def _figures(content: ReportInput) -> dict[str, str]:
    metrics, rows = content.metrics, content.predictions
    training = training_figure([(c.name, c.train_loss, c.val_loss, c.kept) for c in content.curves])
    if content.part is not None:
        return {"training": training}
    folds = scored_folds(rows, metrics["classes"])
    bins = metrics["calibration"]["bins"]
    by_class = [
        (name, np.array([float(row["score"]) for row in rows if row["label"] == label]))
        for label, name in enumerate(metrics["classes"])
    ]
    thresholds = [fold["threshold"] for fold in metrics["folds"] if fold.get("threshold") is not None]
    return {
        "roc": roc_figure(folds, mean_roc(folds)),
        "scores": score_figure(by_class, thresholds),
        "reliability": reliability_figure(*(np.array(bins[key]) for key in ("predicted", "observed", "count"))),
        "training": training,
    }


def scored_folds(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[ScoredFold]:
    """Return one curve a fold for two classes, one a class (against the rest, all folds) for more."""
    if len(classes) == 2:
        numbers = sorted({int(row["fold"]) for row in rows})
        groups = [(f"fold {number}", [r for r in rows if int(r["fold"]) == number], 1) for number in numbers]
    else:
        groups = [(name, list(rows), index) for index, name in enumerate(classes)]
    return [_scored(name, members, index, f"score_{classes[index]}") for name, members, index in groups]


def _scored(name: str, rows: Sequence[Mapping[str, Any]], positive: int, column: str) -> ScoredFold:
    return ScoredFold(
        name,
        np.array([row["label"] == positive for row in rows], bool),
        np.array([float(row[column]) for row in rows]),
        np.array([str(row["patient_id"]) for row in rows]),
    )


def _number(value: Any) -> str:
    if value is None or not isinstance(value, int | float) or not np.isfinite(value):
        return "–"
    return f"{value:.3f}"


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _lift(value: float) -> str:
    return f"×{value:.0f}" if value >= 10 else f"×{value:.1f}"
