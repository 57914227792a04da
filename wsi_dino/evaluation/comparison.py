"""Encoders side by side on the same folds: figures, paired differences, tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic, cv_replicates, percentile_bounds
from wsi_dino.evaluation.delong import auc_influence, delong_interval, delong_test
from wsi_dino.evaluation.metrics import STATISTICS, macro_statistic
from wsi_dino.evaluation.multiple_testing import holm
from wsi_dino.evaluation.permutation import permutation_tests, swap_weights
from wsi_dino.evaluation.published import published_section
from wsi_dino.evaluation.task_result import TaskResult, check_comparable

FIGURES = ("auc", "accuracy", "precision", "recall", "f1")
MACRO = ("macro_precision", "macro_recall", "macro_f1")


@dataclass(frozen=True)
class Resampling:
    """How much chance is tried.

    Attributes:
        n_resamples: bootstrap samples of patients.
        n_permutations: swaps of the permutation test.
        seed: of both.
    """

    n_resamples: int = 2000
    n_permutations: int = 99_999
    seed: int = 0


def compare_tasks(results: Sequence[Sequence[TaskResult]], resampling: Resampling) -> list[dict[str, Any]]:
    """Compare the encoders on each task; Holm's correction counts every pair of every task.

    Args:
        results: for each task those of all its encoders.
        resampling: how much chance is tried.

    Returns:
        One section a task: ``task``, ``encoders`` (figures with intervals), ``pairs`` (differences,
        DeLong, permutation), ``published``.

    Raises:
        ResultError: the folds of a task differ between encoders.
    """
    sections = [compare_encoders(each, resampling) for each in results]
    pairs = [pair for section in sections for pair in section["pairs"]]
    for test in ("delong", "permutation"):
        adjusted = holm([pair[test]["p"] for pair in pairs])
        for pair, p in zip(pairs, adjusted, strict=True):
            pair[test]["p_holm"] = p
    return sections


def compare_encoders(results: Sequence[TaskResult], resampling: Resampling) -> dict[str, Any]:
    """Compare the encoders on one task; as `compare_tasks`, not yet corrected for several tests."""
    check_comparable(results)
    first = results[0]
    names = [*FIGURES, *(MACRO if len(first.classes) == 2 else ())]
    replicates = [_replicates(result.folds, names, resampling) for result in results]
    slides = {slide for members in first.slide_ids for slide in members}
    patients = {str(patient) for fold in first.folds for patient in fold.patient_id}
    return {
        "task": first.task,
        "target": first.metrics["target"],
        "classes": first.classes,
        "n_slides": len(slides),
        "n_patients": len(patients),
        "n_folds": len(first.folds),
        "split_scheme": first.metrics["protocol"]["split_scheme"],
        "encoders": [_encoder(r, each, names) for r, each in zip(results, replicates, strict=True)],
        "pairs": _pairs(results, replicates, names, resampling),
        "published": published_section(first.task),
    }


def _statistic(names: Sequence[str]) -> Statistic:
    macro = {name: macro_statistic(name.removeprefix("macro_")) for name in MACRO}
    each = [macro.get(name) or STATISTICS[name] for name in names]
    return lambda fold, weights: np.stack([statistic(fold, weights) for statistic in each], axis=1)


def _replicates(folds: Sequence[FoldPredictions], names: Sequence[str], resampling: Resampling) -> np.ndarray:
    """Bootstrap replicates ``(n_resamples, n_names)``; the same patients are drawn for every encoder."""
    return cv_replicates(folds, _statistic(names), n_resamples=resampling.n_resamples, seed=resampling.seed)


def _per_fold(folds: Sequence[FoldPredictions], names: Sequence[str]) -> np.ndarray:
    """Figures ``(n_folds, n_names)``."""
    return np.stack([_statistic(names)(fold, np.ones((1, len(fold.y_true))))[0] for fold in folds])


def _encoder(result: TaskResult, replicates: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    each = _per_fold(result.folds, names)
    low, high = percentile_bounds(replicates)
    figures = {}
    for index, name in enumerate(names):
        value, std = float(each[:, index].mean()), _std(each[:, index])
        figures[name] = {"value": value, "low": float(low[index]), "high": float(high[index]), "std": std}
    return {
        "encoder": result.encoder,
        "figures": figures,
        "delong": asdict(delong_interval(auc_influence(result.folds))),
        "thresholds": [fold.threshold for fold in result.folds],
        "threshold_policy": result.metrics["protocol"]["threshold_policy"],
        "fingerprint": result.metrics["provenance"]["fingerprint"],
        "random_weights": bool(result.metrics["provenance"].get("random_weights")),
    }


def _std(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _pairs(
    results: Sequence[TaskResult], replicates: Sequence[np.ndarray], names: Sequence[str], resampling: Resampling
) -> list[dict[str, Any]]:
    chosen = list(itertools.combinations(range(len(results)), 2))
    if not chosen:
        return []
    influence = [auc_influence(result.folds) for result in results]
    weights = np.stack([swap_weights(results[i].folds, results[j].folds) for i, j in chosen], axis=1)
    permuted = permutation_tests(weights, resampling.n_permutations, resampling.seed)
    means = [_per_fold(result.folds, names).mean(0) for result in results]
    pairs = []
    for (i, j), permutation in zip(chosen, permuted, strict=True):
        low, high = percentile_bounds(replicates[i] - replicates[j])
        differences = {
            name: {"value": float(means[i][k] - means[j][k]), "low": float(low[k]), "high": float(high[k])}
            for k, name in enumerate(names)
        }
        pairs.append({
            "first": results[i].encoder, "second": results[j].encoder, "difference": differences,
            "delong": asdict(delong_test(influence[i], influence[j])), "permutation": asdict(permutation),
        })  # fmt: skip
    return pairs


def table_rows(sections: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the comparison as rows of one long table, columns as in `TABLE_COLUMNS`."""
    rows: list[dict[str, Any]] = []
    for section in sections:
        for encoder in section["encoders"]:
            head = {"task": section["task"], "encoder": encoder["encoder"]}
            rows += [{**head, "figure": name, **figure} for name, figure in encoder["figures"].items()]
        for pair in section["pairs"]:
            head = {"task": section["task"], "encoder": pair["first"], "less_encoder": pair["second"]}
            for name, difference in pair["difference"].items():
                rows.append({**head, "figure": name, **difference, **(_p_values(pair) if name == "auc" else {})})
    return rows


TABLE_COLUMNS = (
    "task", "encoder", "less_encoder", "figure", "value", "low", "high", "std", "p_delong", "p_delong_holm",
    "p_permutation", "p_permutation_holm",
)  # fmt: skip


def _p_values(pair: Mapping[str, Any]) -> dict[str, float]:
    kinds = ("delong", "permutation")
    return {f"p_{kind}{end}": pair[kind][f"p{end}"] for kind in kinds for end in ("", "_holm")}


def verdict(section: Mapping[str, Any], level: float = 0.05) -> str:
    """Say which encoder has the highest AUC, and over which of the others that is shown.

    A difference counts as shown when the corrected p of DeLong's and of the permutation test are both
    below `level`.
    """
    ranked = sorted(section["encoders"], key=lambda e: -_or(e["figures"]["auc"]["value"], -1.0))
    best = ranked[0]["encoder"]
    shown: list[str] = []
    open_: list[str] = []
    for other in (encoder["encoder"] for encoder in ranked[1:]):
        pair = next(p for p in section["pairs"] if {p["first"], p["second"]} == {best, other})
        p = max(_or(pair[kind]["p_holm"], 1.0) for kind in ("delong", "permutation"))
        (shown if p < level else open_).append(other)
    text = f"{best} has the highest AUC."
    if shown:
        text += f" That it is better is shown for {', '.join(shown)}."
    if open_:
        text += f" Not shown to differ from {', '.join(open_)}: these slides cannot tell."
    return text


def _or(value: float | None, other: float) -> float:
    return other if value is None or math.isnan(value) else value
