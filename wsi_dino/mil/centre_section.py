"""The part of metrics.json that tells of centres: figures of each, and what the centre alone gives away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval
from wsi_dino.evaluation.centre_probe import CentreProbe, probe_centres
from wsi_dino.evaluation.metrics import STATISTICS, binary_metrics
from wsi_dino.evaluation.split import Split
from wsi_dino.mil.cross_validation import FoldResult
from wsi_dino.mil.material import Material

_POOLED = "held-out slides of all folds pooled: scores of different models in one AUC"
_REPEATED = "mean over the models, all tested on the same slides"


def centre_section(
    material: Material, split: Split, results: Sequence[FoldResult], *, n_resamples: int, seed: int
) -> dict[str, Any] | None:
    """Return figures for each centre, None where the label table names fewer than one.

    Returns:
        ``rows``: for each centre ``centre, n_slides, n_patients, n_positive, auc, accuracy, recall,
        specificity``, on held-out slides (the last four None where it has one class only, or the task more
        than two); ``method``; ``probe``: see `CentreProbe`; ``auc_of_centre_alone``: of the share of
        positive slides that the training part of each fold has in the slide's centre.
    """
    centre_of = material.centre_of
    if not centre_of:
        return None
    rows = [row for result in results for row in result.predictions if row["subset"] == "test"]
    is_repeated = len({row["slide_id"] for row in rows}) < len(rows)
    named = sorted({centre_of[row["slide_id"]] for row in rows if row["slide_id"] in centre_of})
    probe = _probe(material, n_resamples, seed)
    return {
        "rows": [_row(c, [r for r in rows if centre_of.get(r["slide_id"]) == c], n_resamples, seed) for c in named],
        "method": _REPEATED if is_repeated else _POOLED,
        "n_without_centre": len({row["slide_id"] for row in rows} - set(centre_of)),
        "auc_of_centre_alone": _auc_of_centre(material, split, centre_of),
        "probe": None if probe is None else {**asdict(probe), "tells": probe.tells},
    }


def centre_warning(section: Mapping[str, Any] | None) -> list[str]:
    """Return what to doubt where the features tell the centre."""
    probe = None if section is None else section["probe"]
    if not probe or not probe["tells"] or section is None:
        return []
    figure = probe["balanced_accuracy"]
    text = (
        f"The features tell the centre: balanced accuracy {figure['value']:.2f} ({figure['low']:.2f} to "
        f"{figure['high']:.2f}) among {len(probe['centres'])} centres, chance {probe['chance']:.2f}."
    )
    alone = section["auc_of_centre_alone"]
    return [text if alone is None else f"{text} Knowing the centre alone gives an AUC of {alone:.2f}."]


def _row(centre: str, rows: Sequence[Mapping[str, Any]], n_resamples: int, seed: int) -> dict[str, Any]:
    once = {row["slide_id"]: row for row in rows}.values()
    result: dict[str, Any] = {
        "centre": centre, "n_slides": len(once), "n_patients": len({row["patient_id"] for row in once}),
        "n_positive": sum(row["label"] == 1 for row in once),
    }  # fmt: skip
    is_binary = all(row["label"] in (0, 1) for row in rows) and "score" in rows[0] and _n_classes(rows[0]) == 2
    result |= dict.fromkeys(("auc", "accuracy", "recall", "specificity"))
    if not is_binary or len({row["label"] for row in once}) < 2:
        return result
    folds = _folds(rows) if len(once) < len(rows) else [rows]
    predictions = [_predictions(part) for part in folds]
    figures = [_said(part) for part in folds]
    result["auc"] = asdict(cv_interval(predictions, STATISTICS["auc"], n_resamples=n_resamples, seed=seed))
    return result | {name: float(np.mean([f[name] for f in figures])) for name in ("accuracy", "recall", "specificity")}


def _n_classes(row: Mapping[str, Any]) -> int:
    return sum(name.startswith("score_") for name in row)


def _folds(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [[row for row in rows if row["fold"] == fold] for fold in sorted({row["fold"] for row in rows})]


def _predictions(rows: Sequence[Mapping[str, Any]]) -> FoldPredictions:
    truth = np.array([row["label"] for row in rows], np.int64)
    return FoldPredictions(truth, np.array([row["score"] for row in rows], np.float64), [r["patient_id"] for r in rows])


def _said(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of what each model said at its own threshold."""
    said = np.array([row["predicted"] != _negative(row) for row in rows], np.float64)
    return binary_metrics(np.array([row["label"] for row in rows], np.int64), said, 0.5)


def _negative(row: Mapping[str, Any]) -> str:
    return next(name for name in row if name.startswith("score_")).removeprefix("score_")


def _probe(material: Material, n_resamples: int, seed: int) -> CentreProbe | None:
    centre_of = material.centre_of
    patient_of = {row.slide_id: row.patient_id for row in material.cohort.rows}
    means = {
        s: material.store.features(s).mean(0, dtype=np.float64) for s in material.cohort.slide_ids if s in centre_of
    }
    return probe_centres(means, centre_of, patient_of, n_resamples=n_resamples, seed=seed)


def _auc_of_centre(material: Material, split: Split, centre_of: Mapping[str, str]) -> float | None:
    if len(material.cohort.class_names) != 2:
        return None
    label_of = {row.slide_id: row.label for row in material.cohort.rows}
    figures = []
    for fold in split:
        taught = [s for s in material.cohort.slides_of((*fold.train, *fold.val)) if s in centre_of]
        tested = [s for s in material.cohort.slides_of(fold.test) if s in centre_of]
        everywhere = np.mean([label_of[s] for s in taught]) if taught else 0.5
        share = {
            c: float(np.mean([label_of[s] for s in taught if centre_of[s] == c]))
            for c in {centre_of[s] for s in taught}
        }
        truth = np.array([label_of[s] for s in tested], np.int64)
        if len(set(truth.tolist())) == 2:
            score = np.array([share.get(centre_of[s], float(everywhere)) for s in tested])
            figures.append(binary_metrics(truth, score, 0.5)["auc"])
    return float(np.mean(figures)) if figures else None
