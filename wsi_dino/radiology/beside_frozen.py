"""An adapted encoder's figures with those of the frozen one beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsi_dino.evaluation.label_difference import label_difference
from wsi_dino.evaluation.label_evaluation import EvaluationSpec, FoldScores, evaluate_labels
from wsi_dino.evaluation.multilabel import RANKINGS


def beside_frozen(
    encoder: str, folds: Sequence[FoldScores], frozen: Sequence[FoldScores], label_names: Sequence[str],
    spec: EvaluationSpec,
) -> dict[str, Any]:  # fmt: skip
    """Return ``frozen``: AUCs of the frozen encoder in the same folds, and how much more the adapted one reaches.

    Args:
        encoder: name of the frozen one.
        folds: scores after adapting.
        frozen: scores of the frozen encoder.
        label_names: ``(n_labels,)``.
        spec: as of both.
    """
    figures = evaluate_labels(frozen, label_names, spec)
    return {
        "frozen": {
            "encoder": encoder,
            "labels": {name: {"auc": label["auc"]} for name, label in figures["labels"].items()},
            "summary": {name: figures["summary"][name] for name in RANKINGS},
            "adapted_less_frozen": label_difference(folds, frozen, label_names, spec),
        }
    }


def note_beside_frozen(frozen: Mapping[str, Any]) -> str:
    """Return the difference of the means in words."""
    difference = frozen["adapted_less_frozen"]
    kind = "auc_macro_frequent" if difference["auc_macro_frequent"]["value"] is not None else "auc_macro"
    mean = difference[kind]
    if mean["value"] is None:
        return f"frozen {frozen['encoder']}: no AUC to compare with"
    is_clear = mean["low"] > 0 or mean["high"] < 0
    verdict = "" if is_clear else ": no difference that the tested patients could tell from chance"
    return (
        f"adapted less frozen {frozen['encoder']} on the same folds, {kind}: {mean['value']:+.3f} "
        f"({mean['low']:+.3f} to {mean['high']:+.3f}){verdict}"
    )
