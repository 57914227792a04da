"""How much one model ranks better than another on the same test images, with paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_replicates, percentile_bounds
from wsi_dino.evaluation.label_evaluation import EvaluationSpec, FoldScores
from wsi_dino.evaluation.multilabel import LabelPredictions, in_parts, label_aucs


def label_difference(
    folds: Sequence[FoldScores], others: Sequence[FoldScores], label_names: Sequence[str], spec: EvaluationSpec
) -> dict[str, Any]:
    """Return the AUCs of `folds` less those of `others`, label by label and as means.

    The same patients are drawn for both (percentile bootstrap within each fold), so that what is hard for both does
    not widen the interval. A figure is the mean over the folds in which it is defined.

    Args:
        folds: scores of one model.
        others: scores of another on the same test images, in the same order.
        label_names: ``(n_labels,)``.
        spec: resamples, seed, and how many positives make a label frequent.

    Returns:
        ``labels`` (by name), ``auc_macro`` and ``auc_macro_frequent``, each ``{value, low, high}``.

    Raises:
        ValueError: they test different images.
    """
    pairs = [(_predictions(one), _predictions(other)) for one, other in zip(folds, others, strict=True)]
    if any(not np.array_equal(one.rows, other.rows) for one, other in zip(folds, others, strict=True)):
        raise ValueError("both must test the same images in the same order")
    drawn = [first.of_patients() for first, _ in pairs]
    pair_of = {id(fold): pair for fold, pair in zip(drawn, pairs, strict=True)}

    def compute(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
        one, other = pair_of[id(fold)]
        return in_parts(lambda part: label_aucs(one, part) - label_aucs(other, part), weights)

    by_fold = np.stack([compute(fold, np.ones((1, len(fold.y_true))))[0] for fold in drawn])
    replicates = cv_replicates(drawn, compute, n_resamples=spec.n_resamples, seed=spec.seed)
    known = ~np.isnan(by_fold)
    values = np.where(known.any(0), np.where(known, by_fold, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    n_positive = np.concatenate([fold.targets for fold in folds]) == 1
    frequent = n_positive.sum(0) >= spec.min_positives
    every = ~np.isnan(values)
    return {
        "labels": {name: _figure(values[i], replicates[:, i]) for i, name in enumerate(label_names)},
        "auc_macro": _mean(values, replicates, every),
        "auc_macro_frequent": _mean(values, replicates, every & frequent),
    }


def _predictions(fold: FoldScores) -> LabelPredictions:
    return LabelPredictions(fold.targets, fold.scores, fold.patient_id, fold.scores >= 0.5)


def _mean(values: np.ndarray, replicates: np.ndarray, taken: np.ndarray) -> dict[str, Any]:
    if not taken.any():
        return {"value": None, "low": None, "high": None, "n_labels": 0}
    return {**_figure(values[taken].mean(), replicates[:, taken].mean(1)), "n_labels": int(taken.sum())}


def _figure(value: float, replicates: np.ndarray) -> dict[str, float | None]:
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    low, high = percentile_bounds(replicates)
    return {"value": float(value), "low": float(low), "high": float(high)}
