"""A probe in every fold: trained, its scores kept for validation and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.label_folds import FoldRows
from wsi_dino.evaluation.linear_probe import (
    LinearModel,
    LinearProbeSpec,
    LogisticSpec,
    fit_linear_probe,
    fit_logistic,
)

ProbeSpec = LinearProbeSpec | LogisticSpec


def probe_folds(
    features: np.ndarray,
    targets: np.ndarray,
    patient_id: Sequence[str],
    folds: Sequence[FoldRows],
    spec: ProbeSpec,
    *,
    report: Callable[[int], None] = lambda fold: None,
) -> tuple[list[FoldScores], list[LinearModel]]:
    """Train one model a fold on its training rows, and score its validation and test rows.

    Args:
        features: float ``(n, embed_dim)``.
        targets: float ``(n, n_labels)`` of 0, 1 and NaN (unknown).
        patient_id: ``(n,)``.
        folds: rows of each.
        spec: which model.
        report: called after each fold.

    Raises:
        ConfigError: a feature is not finite, or a target is none of 0, 1 and NaN.
    """
    names = np.asarray(patient_id, dtype=str)
    scored, models = [], []
    for number, rows in enumerate(folds):
        model = _fit(features, targets, rows, spec)
        models.append(model)
        scored.append(
            FoldScores(
                targets=targets[rows.test],
                scores=model.scores(features[rows.test]),
                patient_id=names[rows.test].tolist(),
                val_targets=targets[rows.val],
                val_scores=model.scores(features[rows.val]),
                rows=rows.test,
            )
        )
        report(number)
    return scored, models


def _fit(features: np.ndarray, targets: np.ndarray, rows: FoldRows, spec: ProbeSpec) -> LinearModel:
    train = features[rows.train], targets[rows.train]
    if isinstance(spec, LogisticSpec):
        return fit_logistic(*train, features[rows.val], targets[rows.val], spec)
    return fit_linear_probe(*train, spec)
