"""Figures of several yes-or-no labels predicted at once; a label that is not known for a slide counts for nothing."""

from __future__ import annotations

from functools import partial

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic
from wsi_dino.evaluation.metrics import weighted_auc


def label_auc(fold: FoldPredictions, weights: np.ndarray, label: int) -> np.ndarray:
    """Return the AUC of one label for each row of weights; NaN where a value of it is missing.

    Args:
        fold: with ``truth`` and ``scores`` of ``(n, n_labels)``.
        weights: ``(n_rows, n)``.
        label: its column.
    """
    known = np.isfinite(fold.truth[:, label])
    if not known.any():
        return np.full(len(weights), np.nan)
    return weighted_auc(fold.truth[known, label] == 1, fold.scores[known, label], weights[:, known])


def macro_auc(fold: FoldPredictions, weights: np.ndarray) -> np.ndarray:
    """Return the mean of `label_auc` over the labels that have one, for each row of weights."""
    each = np.stack([label_auc(fold, weights, label) for label in range(fold.truth.shape[1])])
    known = np.isfinite(each)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, each, 0).sum(0) / known.sum(0))


def label_statistics(names: tuple[str, ...]) -> dict[str, Statistic]:
    """Return the figures of these labels: ``auc``, the mean over labels, and ``auc[NAME]`` of each."""
    each: dict[str, Statistic] = {f"auc[{name}]": partial(label_auc, label=i) for i, name in enumerate(names)}
    return {"auc": macro_auc, **each}
