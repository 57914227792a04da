"""The report of a task with several labels on radiographs or volumes: one HTML file, no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from wsi_dino import __version__
from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.label_plots import forest_picture, label_roc_picture
from wsi_dino.evaluation.multilabel import CONVENTIONS
from wsi_dino.evaluation.pictures import picture_uri
from wsi_dino.evaluation.published import published_section

_FIGURES = ("auc", "average_precision", "check", "recall", "specificity", "precision", "f1")
_LISTED_FAILURES = 500
_NONE: Mapping[str, Any] = {"value": None, "low": None, "high": None}
_MEANINGS = {
    "accuracy_hamming": "share of all image-label cells that agree",
    "accuracy_macro": "share of images that agree, label by label, then the mean over labels",
    "accuracy_subset": "share of images of which every label agrees (exact match)",
    "accuracy_example": "agreed findings / findings of either, image by image (Jaccard)",
    "accuracy_top1": "share of images whose highest score is a label they have; no threshold",
    "accuracy_balanced_macro": "(sensitivity + specificity) / 2, mean over labels",
    "f1_two_class_weighted": "F1 of both classes of a label weighed by their size, mean over labels",
}
_AVERAGES = {
    "macro": "of the positive class, mean over labels",
    "micro": "of all cells as one table",
    "weighted": "of the positive class, labels weighed by their positives",
    "example": "image by image, then the mean over images",
    "two_class_macro": "mean over both classes of a label, then over labels",
}


@dataclass(frozen=True)
class PagePicture:
    """A picture of pixels for the page.

    Attributes:
        pixels: uint8 ``(height, width, 3)``.
    """

    title: str
    pixels: np.ndarray
    caption: str


@dataclass(frozen=True)
class RadiologyPage:
    """All that the page tells.

    Attributes:
        metrics: the content of metrics.json: ``labels``, ``summary``, ``conventions``, ``check``, ``protocol``,
            ``images``, ``notes``, ``paper_like`` and ``frozen`` (or None), ``dataset``, ``encoder``, and what `facts`
            are told.
        folds: scores of the test images.
        unit: what a row of the table is: images or volumes.
        facts: what else there is to say, in order.
        pictures: of pixels.
        command: what to type to get the same again.
    """

    metrics: Mapping[str, Any]
    folds: Sequence[FoldScores]
    title: str
    unit: str = "images"
    facts: Mapping[str, str] | None = None
    pictures: Sequence[PagePicture] = ()
    command: str = ""


def render_radiology(page: RadiologyPage) -> str:
    """Return the page as text, every text of tables escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "percent": _percent, "signed": _signed}
    source = resources.files("wsi_dino.evaluation").joinpath("radiology_report.html.jinja").read_text(encoding="utf-8")
    metrics, names = page.metrics, list(page.metrics["labels"])
    return environment.from_string(source).render(
        **_context(page),
        **_conventions(metrics),
        forest=Markup(forest_picture(metrics["labels"], metrics.get("check"), _model(metrics)).page_svg()),
        roc=Markup(label_roc_picture(page.folds, names).page_svg()),
        pictures=[
            {"title": picture.title, "caption": picture.caption, "uri": picture_uri(picture.pixels)}
            for picture in page.pictures
        ],
    )


def _model(metrics: Mapping[str, Any]) -> str:
    return str(metrics["protocol"].get("model", "linear probe"))


def _context(page: RadiologyPage) -> dict[str, Any]:
    metrics = page.metrics
    check = metrics.get("check") or {"model": "-", "labels": {}, "summary": {}}
    failures = metrics["images"].get("failures", [])
    return {
        "title": page.title,
        "unit": page.unit,
        "headline": headline(metrics, page.unit),
        "notes": metrics["notes"],
        "check_title": "check",
        "rows": [_row(name, label, check) for name, label in metrics["labels"].items()],
        "totals": _totals(metrics["summary"], check["summary"]),
        "rare_note": "",
        "policy": metrics["protocol"]["evaluation"]["threshold"],
        "protocol": metrics["protocol"],
        "frozen": _beside_frozen(metrics),
        "paper_like": metrics.get("paper_like"),
        "published": published_section(str(metrics["dataset"])),
        "facts": list((page.facts or {}).items()),
        "command": page.command,
        "failures": failures[:_LISTED_FAILURES],
        "version": __version__,
    }


def headline(metrics: Mapping[str, Any], unit: str = "images") -> dict[str, Any]:
    """Return the figure at the top: the mean AUC over labels with enough positives, or of all where none has."""
    summary, minimum = metrics["summary"], metrics["protocol"]["evaluation"]["min_positives"]
    frequent, n_all = summary["auc_macro_frequent"], len(metrics["labels"])
    if n_all == 1:
        name, label = next(iter(metrics["labels"].items()))
        return {"title": f"AUC of {name}", **_figure(label["auc"]), "meaning": _meaning(label["auc"], unit)}
    if frequent["value"] is None:
        title, figure = f"mean AUC of {n_all} labels", summary["auc_macro"]
    else:
        title = f"mean AUC of {frequent['n_labels']} labels"
        figure = frequent
    left_out = n_all - (frequent.get("n_labels") or 0)
    text = _meaning(figure, unit)
    if figure is frequent and left_out:
        every = summary["auc_macro"]
        text += f" {left_out} labels with fewer than {minimum} positive {unit} are not in it"
        text += "." if every["value"] is None else f"; with them {every['value']:.3f}."
    return {"title": title, **_figure(figure), "meaning": text}


def _meaning(figure: Mapping[str, Any], unit: str) -> str:
    if figure["value"] is None:
        return f"It is not defined: the tested {unit} lack a class of every label."
    pairs = f"Of 100 pairs of {unit}, one with and one without the label, about {round(100 * figure['value'])} are"
    return f"{pairs} ranked rightly (guessing: 50)."


def _figure(value: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**_NONE, **(value or {})}


def _row(name: str, label: Mapping[str, Any], check: Mapping[str, Any]) -> dict[str, Any]:
    figures = {kind: label.get(kind) for kind in _FIGURES}
    figures["check"] = check["labels"].get(name, {}).get("auc")
    return {
        "name": name,
        "n_positive": label["n_positive"],
        "n_known": label["n_positive"] + label["n_negative"],
        "prevalence": label["prevalence"],
        "figures": [_figure(figures[kind]) for kind in _FIGURES],
    }


def _beside_frozen(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the rows of an adapted encoder beside the frozen one."""
    frozen = metrics.get("frozen")
    if frozen is None:
        return None
    difference, summary = frozen["adapted_less_frozen"], frozen["summary"]
    rows = [
        _beside(name, label["auc"], frozen["labels"][name]["auc"], difference["labels"][name])
        for name, label in metrics["labels"].items()
    ]
    rows += [
        {**_beside(f"mean ({name})", metrics["summary"][name], summary[name], difference[name]), "is_mean": True}
        for name in ("auc_macro", "auc_macro_frequent")
        if difference[name]["value"] is not None
    ]
    return {"encoder": frozen["encoder"], "rows": rows}


def _beside(
    name: str, adapted: Mapping[str, Any], frozen: Mapping[str, Any], less: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    return {"name": name, "is_mean": False, "figures": [_figure(adapted), _figure(frozen)], "less": _figure(less)}


def _totals(summary: Mapping[str, Any], check: Mapping[str, Any]) -> list[dict[str, Any]]:
    n_frequent = summary["auc_macro_frequent"].get("n_labels") or 0
    titles = {
        "auc_macro": ("mean over labels (auc_macro)", "average_precision_macro"),
        "auc_macro_frequent": (f"mean over the {n_frequent} with enough positives (auc_macro_frequent)", None),
        "auc_weighted": ("weighed by positives (auc_weighted)", None),
        "auc_micro": ("all cells as one ranking (auc_micro)", None),
    }
    return [
        {
            "name": title,
            "auc": _figure(summary[name]),
            "ap": _figure(summary[other]) if other else None,
            "check": _figure(check.get(name)),
        }
        for name, (title, other) in titles.items()
    ]


def _conventions(metrics: Mapping[str, Any]) -> dict[str, Any]:
    policies = metrics["conventions"]
    rows = [
        {
            "name": name,
            "meaning": _MEANINGS.get(name) or _average(name),
            "cells": [
                {**_figure(each["figures"][name]), "optimistic": each["optimistic"]} for each in policies.values()
            ],
        }
        for name in CONVENTIONS
    ]
    columns = [{"name": name, "optimistic": each["optimistic"]} for name, each in policies.items()]
    return {
        "conventions": rows,
        "policies": columns,
        "any_optimistic": any(column["optimistic"] for column in columns),
    }


def _average(name: str) -> str:
    return next((text for average, text in _AVERAGES.items() if name.split("_", 1)[1] == average), "")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and np.isfinite(value) else "–"


def _signed(value: Any) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
