"""Results of one dataset in a run beside each other: what enlarging slices, layers, decoder and channels are worth."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import percentile_bounds
from wsi_dino.segmentation.scores import mean_over_cases

_RESAMPLES = 2000
_VOXELS = "none, learns from voxels"


@dataclass(frozen=True)
class StoredResult:
    """What one result left.

    Attributes:
        label: its folder, below the run's ``segmentation/``.
        metrics: content of metrics.json.
        rows: of cases.csv, one a held-out case and class, with ``dice`` and ``hd95_mm`` as numbers or None.
    """

    label: str
    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def folds(self) -> set[int]:
        """Numbers of the folds that were done."""
        return {fold["fold"] for fold in self.metrics["folds"]}

    def settings(self) -> dict[str, str]:
        """Return what may have been chosen differently, in words."""
        protocol, model = self.metrics["protocol"], self.metrics["protocol"]["model"]
        channels = "+".join(self.metrics["channels"])
        if self.metrics["encoder"] is None:
            own = {"encoder": _VOXELS, "slices": "–", "layers": "–", "decoder": self.metrics["decoder"]}
        else:
            own = {
                "encoder": self.metrics["encoder"],
                "slices": f"x{protocol['enlargement']:.3g}, to {protocol['shown_px']} px",
                "layers": ", ".join(map(str, protocol["layers"])),
                "decoder": self.metrics["decoder"] + (" + image" if model["image_skip"] else ""),
            }
            channels += f", {model['meeting']}" if len(self.metrics["channels"]) > 1 else ""
        training = protocol["training"]
        views = (protocol["features"] or {}).get("n_views", 1)
        recipe = f"{training['epochs']} epochs, rate {training['learning_rate']:g}, {views} views"
        return {**own, "channels": channels, "training": recipe}


def read_results(run: Path, metrics: Mapping[str, Any]) -> list[StoredResult]:
    """Return the results of the same dataset, split and limit in a run.

    Files that are broken or of another version are left out.

    Args:
        run: the run folder.
        metrics: of the result they are to stand beside.
    """
    found = []
    for path in sorted((run / "segmentation").glob("*/*/metrics.json")):
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
            same = all(other["protocol"][key] == metrics["protocol"][key] for key in ("split", "limit"))
            if other["dataset"] == metrics["dataset"] and same:
                label = f"{path.parent.parent.name}/{path.parent.name}"
                result = StoredResult(label, other, _read_rows(path.with_name("cases.csv")))
                result.settings()
                found.append(result)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["status"] == "done"]
    numbers = ("dice", "hd95_mm")
    return [{**row, "fold": int(row["fold"]), **{name: _number(row[name]) for name in numbers}} for row in rows]


def _number(text: str) -> float | None:
    return float(text) if text else None


def compare_results(own: StoredResult, others: Sequence[StoredResult]) -> list[dict[str, Any]]:
    """Set every result beside one of them, on the folds and cases that both have.

    Returns:
        For each, best first: ``label``, ``settings``, ``n_cases``, ``dice`` (with ``per_class``), ``hd95_mm``,
        ``differs`` (what was chosen differently, in words), and ``difference``: the other's Dice less this one's on
        the same cases, with ``low`` and ``high`` of a 95% bootstrap interval over patients. The result itself has
        neither; one that shares no case has no figures.
    """
    found = [_compared(own, other) for other in others]
    return sorted(found, key=lambda row: -np.nan_to_num(row["dice"], nan=-1.0))


def _compared(own: StoredResult, other: StoredResult) -> dict[str, Any]:
    shared = _keys(own.rows) & _keys(other.rows)
    rows = [row for row in other.rows if _key(row) in shared]
    dice = mean_over_cases(rows, "dice")
    is_own = other.label == own.label
    return {
        "label": other.label,
        "is_this": is_own,
        "settings": other.settings(),
        "n_cases": len(shared),
        "folds": sorted(own.folds & other.folds),
        "dice": dice["mean"],
        "per_class": dice["per_class"],
        "hd95_mm": mean_over_cases(rows, "hd95_mm")["mean"],
        "minutes": round(sum(fold["training_minutes"] for fold in other.metrics["folds"]), 1),
        "differs": "" if is_own else _differences(own.settings(), other.settings()),
        "difference": None if is_own else _paired_difference(own.rows, other.rows, shared),
    }


def _key(row: Mapping[str, Any]) -> tuple[int, str]:
    return row["fold"], row["case_id"]


def _keys(rows: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
    return {_key(row) for row in rows}


def _differences(own: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Return what differs; slices and layers of another encoder are not told, since they must differ."""
    same_encoder = own["encoder"] == other["encoder"]
    told = [key for key in own if same_encoder or key not in ("slices", "layers")]
    return "; ".join(f"{key}: {other[key]} instead of {own[key]}" for key in told if own[key] != other[key])


def _paired_difference(
    own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], shared: set[tuple[int, str]]
) -> dict[str, float] | None:
    """Return the mean difference of the cases' Dice, drawn over patients."""
    first, second = _dice_of_cases(own), _dice_of_cases(other)
    patient_of = {_key(row): row["patient_id"] for row in own}
    pairs = [(patient_of[key], second[key] - first[key]) for key in sorted(shared)]
    pairs = [pair for pair in pairs if np.isfinite(pair[1])]
    if not pairs:
        return None
    differences = np.array([difference for _, difference in pairs])
    patients, index = np.unique([patient for patient, _ in pairs], return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(patients), [1 / len(patients)] * len(patients), size=_RESAMPLES)
    weights = drawn[:, index]
    means = (weights @ differences) / weights.sum(1)
    low, high = percentile_bounds(means)
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


def _dice_of_cases(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    values: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        values.setdefault(_key(row), []).append(float("nan") if row["dice"] is None else row["dice"])
    return {key: float(np.nanmean(of_case)) if np.isfinite(of_case).any() else float("nan")
            for key, of_case in values.items()}  # fmt: skip
