"""Figures of tasks with yes-or-no labels, as the radiology commands write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsi_dino.paper.kind import Figure

_OF_LABEL = {"auc": "auc", "acc": "accuracy", "precision": "precision", "recall": "recall"}
_OF_MEAN = {"auc": "auc_macro", "acc": "accuracy_macro", "precision": "precision_macro", "recall": "recall_macro"}


def label_figures(metrics: Mapping[str, Any]) -> dict[str, Figure]:
    """Return AUC, accuracy, precision and recall: of the one label, or the mean over labels.

    Examples:
        >>> auc = {"value": 0.8, "low": 0.7, "high": 0.9}
        >>> metrics = {"labels": {"pneumonia": dict.fromkeys(("auc", "accuracy", "precision", "recall"), auc)},
        ...            "protocol": {"evaluation": {"threshold": "youden-on-validation"}}}
        >>> label_figures(metrics)["auc"].value
        0.8
    """
    labels = metrics["labels"]
    threshold = metrics["protocol"]["evaluation"]["threshold"]
    if len(labels) == 1:
        ((name, own),) = labels.items()
        return {
            metric: _figure(own[key], f"{key} of {name}", "" if metric == "auc" else f", threshold {threshold}")
            for metric, key in _OF_LABEL.items()
        }
    summary = metrics["summary"]
    return {
        metric: _figure(
            summary[key],
            f"{key}: mean over {summary[key].get('n_labels', len(labels))} labels",
            "" if metric == "auc" else f", threshold {threshold} for each",
        )
        for metric, key in _OF_MEAN.items()
    }


def _figure(found: Mapping[str, Any], convention: str, cut: str) -> Figure:
    why = found.get("why") or found.get("why_no_interval") or ""
    return Figure(found["value"], found["low"], found["high"], "share", convention + cut, why)
