"""The parts of metrics.json of targets that are not one class: survival, numbers, several labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.survival import brier_at, calibration_at, compare_groups
from wsi_dino.mil.cross_validation import FoldResult
from wsi_dino.mil.labels_target import LabelsTarget
from wsi_dino.mil.survival_target import HIGH, LOW, SurvivalTarget
from wsi_dino.mil.target_kind import TargetKind

_CUT = (
    "A patient is of high risk when the mean risk of the slides lies above the median risk of the training and "
    "validation patients of the fold; no tested patient has a say in it."
)
_REPEATED = " Patients tested by several models: mean survival, and the group that most of the models say."
_CALIBRATION = "groups of equal size by predicted survival, held-out patients of all folds; observed: Kaplan-Meier"


def target_section(
    target: TargetKind, results: Sequence[FoldResult], summary: Mapping[str, Any], *, n_resamples: int, seed: int
) -> dict[str, Any]:
    """Return the section of one kind of target, under its name; nothing for classes.

    Args:
        target: the kind.
        results: one a fold.
        summary: the figures with their intervals.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    if isinstance(target, SurvivalTarget):
        return {"survival": survival_section(target, results, summary, n_resamples=n_resamples, seed=seed)}
    if isinstance(target, LabelsTarget):
        return {"labels": labels_section(target, results, summary)}
    return {"regression": dict(summary)} if target.kind == "regression" else {}  # type: ignore[attr-defined]


def survival_section(
    target: SurvivalTarget, results: Sequence[FoldResult], summary: Mapping[str, Any], *, n_resamples: int, seed: int
) -> dict[str, Any]:
    """Return concordance, risk groups with their curves and log-rank test, and calibration at the horizon."""
    patients, is_repeated = _pooled(target, results)
    time, event, high, predicted = (np.array([row[name] for row in patients], float) for name in _COLUMNS)
    ids = [row["patient_id"] for row in patients]
    compared = compare_groups(time, event, high.astype(int), (LOW, HIGH))
    return {
        "c_index": {name: summary["c_index"][name] for name in ("value", "low", "high")},
        "head": target.head,
        "horizon": target.horizon,
        "n_patients": len(patients),
        "n_events": int(event.sum()),
        "log_rank_p": compared["log_rank_p"],
        "groups": compared["groups"],
        "cut": _CUT + (_REPEATED if is_repeated else ""),
        "calibration": {
            "horizon": target.horizon,
            "method": _CALIBRATION,
            "groups": calibration_at(time, event, predicted, target.horizon),
            "brier": brier_at(time, event, predicted, ids, target.horizon, n_resamples=n_resamples, seed=seed),
        },
    }


_COLUMNS = ("time", "event", "is_high", "survival")


def _pooled(target: SurvivalTarget, results: Sequence[FoldResult]) -> tuple[list[dict[str, Any]], bool]:
    """Return each tested patient once, and whether several models tested one."""
    said: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        cut = result.threshold.value if result.threshold else 0.0
        for row in target.patients([row for row in result.predictions if row["subset"] == "test"]):
            said.setdefault(row["patient_id"], []).append({**row, "is_high": row["risk"] > cut})
    once = [
        {
            **rows[0],
            "survival": float(np.mean([row["survival"] for row in rows])),
            "is_high": np.mean([row["is_high"] for row in rows]) > 0.5,
        }
        for _, rows in sorted(said.items())
    ]
    return once, any(len(rows) > 1 for rows in said.values())


def labels_section(
    target: LabelsTarget, results: Sequence[FoldResult], summary: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a row a label: ``name, negative, positive, n_known, n_positive, n_folds, auc``."""
    tested = {row["slide_id"]: row for result in results for row in result.predictions if row["subset"] == "test"}
    rows = []
    for name, (negative, positive) in zip(target.names, target.words, strict=True):
        known = [row[name] for row in tested.values() if row[name] is not None]
        figures = [result.metrics[f"auc[{name}]"] for result in results]
        rows.append(
            {
                "name": name, "negative": negative, "positive": positive, "n_known": len(known),
                "n_positive": int(sum(known)), "n_folds": int(np.isfinite(figures).sum()),
                "auc": {key: summary[f"auc[{name}]"][key] for key in ("value", "low", "high")},
            }
        )  # fmt: skip
    return rows
