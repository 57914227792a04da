"""predictions.csv: a row a tested image or volume, with truth, score and verdict of every label."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.label_evaluation import FoldScores


def predictions_csv(
    label_names: Sequence[str],
    ids: Sequence[str],
    patient_ids: Sequence[str],
    metrics: Mapping[str, Any],
    folds: Sequence[FoldScores],
    *,
    unit: str = "image",
) -> str:
    """Return the table as text: ``fold, UNIT, patient_id``, then ``LABEL, score_LABEL, predicted_LABEL``.

    An unknown label is an empty cell. ``predicted`` is 1 where the score is at or above the fold's threshold.

    Args:
        label_names: in order.
        ids: ``(n,)`` of all images or volumes, to which `FoldScores.rows` point.
        patient_ids: ``(n,)``.
        metrics: of `evaluate_labels`, for the thresholds.
        folds: the scores.
        unit: what a row is.
    """
    names = list(label_names)
    header = [column for name in names for column in (name, f"score_{name}", f"predicted_{name}")]
    cuts = np.array([metrics["labels"][name]["thresholds"] for name in names])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", unit, "patient_id", *header])
    for number, fold in enumerate(folds):
        for row, truth, score in zip(fold.rows, fold.targets, fold.scores, strict=True):
            cells: list[Any] = [number, ids[row], patient_ids[row]]
            for label in range(len(names)):
                known = "" if np.isnan(truth[label]) else int(truth[label])
                cells += [known, f"{score[label]:.9g}", int(score[label] >= cuts[label, number])]
            writer.writerow(cells)
    return buffer.getvalue()
