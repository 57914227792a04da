"""The statistics of metrics.json beside its summary: DeLong, both averages, selective prediction, decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wsi_dino.evaluation.averaging import average_both_ways
from wsi_dino.evaluation.bootstrap import FoldPredictions
from wsi_dino.evaluation.calibration import calibration_interval
from wsi_dino.evaluation.decision_curve import decision_section
from wsi_dino.evaluation.delong import auc_influence, delong_interval
from wsi_dino.evaluation.selective import selective_section

_AVERAGES_TEXT = (
    "positive_class: precision and recall of the positive class; macro: their mean over classes. "
    "The summary above has the positive class for two classes, macro for more."
)


def statistics_section(
    folds: Sequence[FoldPredictions], calibration: Mapping[str, Any], *, n_resamples: int, seed: int
) -> dict[str, Any]:
    """Return the parts of metrics.json named ``delong``, ``averages``, ``selective`` and ``decision_curve``.

    Args:
        folds: the test predictions of each fold.
        calibration: the part of that name, which comes back with intervals.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    resampling: dict[str, int] = {"n_resamples": n_resamples, "seed": seed}
    labels = np.concatenate([fold.y_true for fold in folds])
    scores = np.concatenate([fold.scores for fold in folds])
    patients = [str(patient) for fold in folds for patient in fold.patient_id]
    is_binary = scores.ndim == 1
    truth, score = (labels, scores) if is_binary else ((scores.argmax(1) == labels).astype(int), scores.max(1))
    intervals = calibration_interval(truth, score, patients, n_bins=calibration["n_bins"], **resampling)
    if not is_binary:
        intervals.pop("brier")  # that of the class said, not of all classes as in the section
    return {
        "delong": delong_section(folds),
        "averages": {"text": _AVERAGES_TEXT, **average_both_ways(folds, **resampling)},
        "selective": selective_section(folds, **resampling),
        "decision_curve": decision_section(labels, scores) if is_binary else None,
        "calibration": {**calibration, "intervals": intervals},
    }


def delong_section(folds: Sequence[FoldPredictions]) -> dict[str, Any]:
    """Return DeLong's interval of the mean AUC as plain values, and what was the unit."""
    auc = auc_influence(folds)
    unit = (
        "patients, their slides and folds clustered (Obuchowski 1997)"
        if auc.is_clustered
        else "patients, one slide each"
    )
    return {"auc": asdict(delong_interval(auc)), "level": 0.95, "unit": unit, "averaged": "mean over folds"}
