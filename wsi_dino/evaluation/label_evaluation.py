"""From the scores of each fold to every figure with its interval: the labels, the conventions, the thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_replicates, percentile_bounds
from wsi_dino.evaluation.label_thresholds import (
    HONEST,
    OPTIMISTIC,
    LabelPolicy,
    LabelThresholds,
    choose_label_thresholds,
)
from wsi_dino.evaluation.multilabel import (
    CONVENTIONS,
    LABEL_FIGURES,
    RANKINGS,
    LabelPredictions,
    conventions,
    in_parts,
    label_aucs,
    label_average_precisions,
    label_figures,
    micro_auc,
    undefined_figures,
)

_RANKED = ("auc", "average_precision")
_MIN_DEFINED = 0.5  # share of the resamples in which a figure must be defined to have an interval


class EvaluationSpec(BaseModel):
    """How predictions are judged.

    Attributes:
        threshold: the policy behind every figure of `labels` and `summary` that needs a cut.
        fixed_threshold: of the policy ``fixed``.
        optimistic: show the policies that choose on the test labels too, flagged.
        zero_division: what 0/0 counts as.
        min_positives: labels with fewer positive test images take no part in ``auc_macro_frequent``.
        n_resamples: of patients, for intervals.
        seed: of the resampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: LabelPolicy = "youden-on-validation"
    fixed_threshold: float = Field(default=0.5, ge=0, le=1)
    optimistic: bool = False
    zero_division: Literal[0, 1] = 0
    min_positives: int = Field(default=20, ge=1)
    n_resamples: int = Field(default=1000, ge=100)
    seed: int = 0

    @property
    def policies(self) -> tuple[LabelPolicy, ...]:
        """All that are shown; the chosen one first."""
        shown = HONEST + (OPTIMISTIC if self.optimistic else ())
        return (self.threshold, *(policy for policy in shown if policy != self.threshold))


@dataclass(frozen=True)
class FoldScores:
    """What a model said in one fold.

    Attributes:
        targets, scores: float ``(n, n_labels)`` of the test images; targets are 0, 1 or NaN.
        patient_id: ``(n,)`` of the test images.
        val_targets, val_scores: the same of the validation images, which choose thresholds.
        rows: int ``(n,)`` row numbers of the test images in the table of all.
    """

    targets: np.ndarray
    scores: np.ndarray
    patient_id: Sequence[str]
    val_targets: np.ndarray
    val_scores: np.ndarray
    rows: np.ndarray

    def thresholds(self, label_names: Sequence[str], policy: LabelPolicy, fixed: float) -> LabelThresholds:
        """Choose cuts for this fold."""
        on_test = policy in OPTIMISTIC
        targets, scores = (self.targets, self.scores) if on_test else (self.val_targets, self.val_scores)
        return choose_label_thresholds(targets, scores, label_names, policy, fixed=fixed)

    def cut(self, thresholds: LabelThresholds) -> LabelPredictions:
        """Return the test predictions as yes and no."""
        return LabelPredictions(self.targets, self.scores, self.patient_id, self.scores >= thresholds.values)


def evaluate_labels(
    folds: Sequence[FoldScores], label_names: Sequence[str], spec: EvaluationSpec | None = None
) -> dict[str, Any]:
    """Judge the test scores of all folds.

    A figure is the mean over the folds in which it is defined. Its interval is the percentile bootstrap over
    patients, drawn with replacement within each fold, the same draws for every figure; a draw in which it is not
    defined is left out. That of average precision is moved by the mean shift of the draws.

    Args:
        folds: at least one.
        label_names: ``(n_labels,)``.
        spec: the settings.

    Returns:
        ``labels`` (each: ``auc``, ``average_precision`` and, at the chosen thresholds, `LABEL_FIGURES`, as
        ``{value, low, high}``, with ``why`` where there is no value; ``prevalence`` and counts; ``thresholds``, one
        a fold), ``summary`` (`RANKINGS` and, at the chosen thresholds, every convention), ``conventions``
        (by policy, each of `CONVENTIONS`; ``optimistic`` says which policies saw the test labels), and
        ``undefined`` (0/0 by fold).
    """
    spec = spec or EvaluationSpec()
    chosen = {
        policy: [fold.thresholds(label_names, policy, spec.fixed_threshold) for fold in folds]
        for policy in spec.policies
    }
    cut = {policy: [fold.cut(t) for fold, t in zip(folds, chosen[policy], strict=True)] for policy in chosen}
    figures = _figures(cut, label_names, spec)
    main = cut[spec.threshold]
    return {
        "labels": {
            name: _label(label, name, folds, figures, [t.values[label] for t in chosen[spec.threshold]])
            for label, name in enumerate(label_names)
        },
        "summary": {name: figures["overall", name] for name in RANKINGS}
        | {name: figures[spec.threshold, name] for name in CONVENTIONS},
        "conventions": {
            policy: {
                "optimistic": policy in OPTIMISTIC,
                "figures": {name: figures[policy, name] for name in CONVENTIONS},
                "thresholds": [dict(zip(label_names, t.values.tolist(), strict=True)) for t in chosen[policy]],
                "fallbacks": [t.fallbacks for t in chosen[policy]],
            }
            for policy in spec.policies
        },
        "undefined": [undefined_figures(fold, label_names) for fold in main],
    }


_Key = tuple[str, str]


def _figures(
    cut: Mapping[LabelPolicy, Sequence[LabelPredictions]], label_names: Sequence[str], spec: EvaluationSpec
) -> dict[_Key, dict[str, Any]]:
    """Compute everything on the same draws; one column a figure."""
    main = cut[spec.threshold]
    drawn = [fold.of_patients() for fold in main]
    number_of = {id(fold): number for number, fold in enumerate(drawn)}
    keys: list[_Key] = []

    def compute(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
        number = number_of[id(fold)]
        mine = {policy: cut[policy][number] for policy in cut}

        def columns(part: np.ndarray) -> np.ndarray:
            table = _columns(mine, part, label_names, spec)
            keys[:] = list(table)
            return np.stack(list(table.values()), axis=1)

        return in_parts(columns, weights)

    ones = [compute(fold, np.ones((1, len(fold.y_true))))[0] for fold in drawn]
    replicates = cv_replicates(drawn, compute, n_resamples=spec.n_resamples, seed=spec.seed)
    by_fold = np.stack(ones)
    table = {
        key: _interval(by_fold[:, i], replicates[:, i], centred=key[0] == "average_precision")
        for i, key in enumerate(keys)
    }
    means = {key: _mean_of_known(by_fold[:, i]) for i, key in enumerate(keys)}
    drawn_of = {key: replicates[:, i] for i, key in enumerate(keys)}
    return table | _macro_rankings(means, drawn_of, main, label_names, spec.min_positives)


def _macro_rankings(
    means: Mapping[_Key, float],
    replicates: Mapping[_Key, np.ndarray],
    folds: Sequence[LabelPredictions],
    label_names: Sequence[str],
    min_positives: int,
) -> dict[_Key, dict[str, Any]]:
    """Average labels over what each is over the folds: a fold that lacks a label does not change its weight."""
    n_positive = sum((fold.targets == 1).sum(0) for fold in folds)
    frequent = (n_positive >= min_positives).astype(np.float64)
    wanted = {
        "auc_macro": ("auc", np.ones(len(label_names))),
        "auc_macro_frequent": ("auc", frequent),
        "auc_weighted": ("auc", n_positive),
        "average_precision_macro": ("average_precision", np.ones(len(label_names))),
    }
    table = {}
    for name, (kind, weight) in wanted.items():
        keys = [(kind, f"label {label}") for label in label_names]
        value = _weighted_mean(np.array([[means[key] for key in keys]]), weight)
        taken = [key for i, key in enumerate(keys) if weight[i] > 0 and not np.isnan(means[key])]
        drawn = _weighted_mean(np.stack([replicates[key] for key in keys], axis=1), weight)
        for key in taken:  # a mean over fewer labels would be another figure
            drawn = np.where(np.isnan(replicates[key]), np.nan, drawn)
        interval = _interval(value, drawn, centred=kind == "average_precision")
        table["overall", name] = {**interval, "n_folds": len(folds), "n_labels": len(taken)}
    return table


def _weighted_mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is known; NaN where nothing is."""
    taking_part = np.where(np.isnan(values), 0.0, weight)
    whole = taking_part.sum(-1)
    total = (np.nan_to_num(values) * taking_part).sum(-1)
    return np.divide(total, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _columns(
    cut: Mapping[LabelPolicy, LabelPredictions],
    weights: np.ndarray,
    label_names: Sequence[str],
    spec: EvaluationSpec,
) -> dict[_Key, np.ndarray]:
    main = cut[spec.threshold]
    aucs, precisions = label_aucs(main, weights), label_average_precisions(main, weights)
    table: dict[_Key, np.ndarray] = {("overall", "auc_micro"): micro_auc(main, weights)}
    by_label = {"auc": aucs, "average_precision": precisions}
    by_label |= label_figures(main, weights, zero_division=spec.zero_division)
    for kind, values in by_label.items():
        table |= {(kind, f"label {name}"): values[:, label] for label, name in enumerate(label_names)}
    for policy, predictions in cut.items():
        figures = conventions(predictions, weights, zero_division=spec.zero_division)
        table |= {(policy, name): value for name, value in figures.items()}
    return table


def _interval(by_fold: np.ndarray, replicates: np.ndarray, *, centred: bool = False) -> dict[str, Any]:
    """Summarise a figure; `centred` takes the mean shift of the draws off its interval.

    An image drawn twice ties with itself, which raises average precision where positives are few: the plain interval
    may then lie above the value.
    """
    known, drawn = by_fold[~np.isnan(by_fold)], ~np.isnan(replicates)
    if not len(known):
        return {"value": None, "low": None, "high": None, "n_folds": 0}
    figure = {"value": float(known.mean()), "low": None, "high": None, "n_folds": len(known)}
    if drawn.mean() < _MIN_DEFINED:
        return figure | {"why_no_interval": "most draws of patients lack a class of a label"}
    shift = float(replicates[drawn].mean() - known.mean()) if centred else 0.0
    low, high = (float(bound) - shift for bound in percentile_bounds(replicates[drawn]))
    return figure | {"low": low, "high": high}


def _label(
    label: int,
    name: str,
    folds: Sequence[FoldScores],
    figures: Mapping[_Key, dict[str, Any]],
    thresholds: Sequence[float],
) -> dict[str, Any]:
    targets = [fold.targets[:, label] for fold in folds]
    every = np.concatenate(targets)
    n_positive, n_negative = int((every == 1).sum()), int((every == 0).sum())
    known = n_positive + n_negative
    found = {kind: dict(figures[kind, f"label {name}"]) for kind in (*_RANKED, *LABEL_FIGURES)}
    for kind in _RANKED:
        found[kind] |= _why(targets, found[kind])
    return {
        **found,
        "prevalence": n_positive / known if known else None,
        "n_positive": n_positive,
        "n_negative": n_negative,
        "n_unknown": int(np.isnan(every).sum()),
        "thresholds": [float(value) for value in thresholds],
    }


def _why(targets: Sequence[np.ndarray], figure: Mapping[str, Any]) -> dict[str, str]:
    """Say in words why a figure is not there, or not of all folds."""
    bad = [
        f"fold {number} tests on no {' and no '.join(missing)} image"
        for number, target in enumerate(targets)
        if (missing := [kind for kind, value in (("positive", 1), ("negative", 0)) if not (target == value).any()])
    ]
    if not bad:
        return {}
    rest = f"; mean of the other {figure['n_folds']}" if figure["n_folds"] else ": not defined"
    return {"why": "; ".join(bad) + rest}
