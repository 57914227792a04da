"""The content of metrics.json: what was found, how it was found, from what, and what to doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wsi_dino.evaluation.calibration import compute_reliability
from wsi_dino.evaluation.caveats import Evidence, find_caveats
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.split import Split
from wsi_dino.evaluation.target_columns import EVENT
from wsi_dino.evaluation.target_report import HEADLINES
from wsi_dino.mil.bags import has_random_weights
from wsi_dino.mil.cross_validation import FoldResult
from wsi_dino.mil.fold_work import Learning, code_fingerprint
from wsi_dino.mil.material import Material
from wsi_dino.mil.models import get_model
from wsi_dino.provenance import environment, fingerprint

_N_BINS = 10
_PERMUTED = (
    "THE LABELS WERE PERMUTED (seed {seed}): nothing here is a result. The interval of the {figure} should hold "
    "{chance}; where it does not in many more than one of twenty seeds, something leaks."
)
_POLICIES = {
    "youden-on-validation": "the cut with the greatest recall + specificity on the fold's validation slides",
    "f1-on-validation": "the cut with the greatest F1 on the fold's validation slides",
    "fixed-0.5": "0.5, chosen before looking at any slide",
    "highest-score": "none; the class with the highest score is said",
    "median-risk-of-training": "high risk lies above the median risk of the fold's training and validation patients",
}


def build_metrics(
    material: Material, split: Split, learning: Learning, results: Sequence[FoldResult], summary: Mapping[str, Any],
    evenness: Sequence[float], identity: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the content of metrics.json.

    Args:
        material: what was learnt from.
        split: the folds.
        learning: how they were learnt.
        results: one a fold.
        summary: of `cross_validation.summarise`.
        evenness: of the attention on each held-out slide.
        identity: fingerprint of all that went in.
    """
    classes, is_classes = material.cohort.class_names, material.cohort.kind == "classes"
    test_rows = [row for result in results for row in result.predictions if row["subset"] == "test"]
    random_weights = has_random_weights(material.store.provenance)
    record = get_model(learning.spec.model)
    epochs = [(result.best_epoch + 1, learning.spec.epochs) for result in results]
    return {
        "task": material.task.name,
        "encoder": material.encoder,
        "model": learning.spec.model,
        "result_name": learning.result_name(material.encoder),
        "target": material.task.target,
        "permuted_labels": material.permuted_labels,
        "classes": list(classes) if is_classes else [],
        **({} if is_classes else _kind_section(material)),
        "n_slides": len(material.cohort),
        "n_patients": len(material.cohort.patients),
        "folds": [row | _sizes(material, split, row["fold"]) for row in summary["folds"]],
        "summary": summary["summary"],
        **({"calibration": calibration_section(test_rows, classes)} if is_classes else {}),
        "cohort": cohort_section(material),
        "scheme": material.task.scheme.model_dump(mode="json", exclude={"test_run", "test_labels"}),
        "notes": list(material.notes),
        "protocol": _protocol(material, split, learning, results, summary),
        **({"chosen_c": [r.history[r.best_epoch]["c"] for r in results]} if record.is_convex else {}),
        **({} if material.adaptation is None else {"adaptation": dict(material.adaptation)}),
        "exclusions": [asdict(exclusion) for exclusion in material.exclusions],
        "warnings": caveats(
            material, split, summary["summary"], random_weights=random_weights,
            evenness=evenness if record.has_attention else (), epochs_kept=() if record.is_convex else epochs,
        ),
        "provenance": _provenance(material, split, learning, identity),
    }  # fmt: skip


def _protocol(
    material: Material, split: Split, learning: Learning, results: Sequence[FoldResult], summary: Mapping[str, Any]
) -> dict[str, Any]:
    own = {"regression": "none", "labels": learning.threshold_policy}
    policy = own.get(material.cohort.kind, summary["threshold_policy"])
    return {
        "threshold_policy": policy,
        "threshold_policy_text": _POLICIES.get(policy, policy),
        "target_threshold": material.task.threshold,
        "split_scheme": split.scheme,
        "split_seed": split.seed,
        "interval": summary["interval"],
        "training": learning.spec.model_dump(mode="json"),
        "tile_score": get_model(learning.spec.model).tile_score,
        "precision": sorted({result.precision for result in results}),
        "device": learning.device,
    }


def _provenance(material: Material, split: Split, learning: Learning, identity: str) -> dict[str, Any]:
    return {
        "fingerprint": identity,
        "code": code_fingerprint(learning.spec.model),
        "features": fingerprint(dict(material.features_fingerprint)),
        "split": split.fingerprint,
        "features_identity": material.store.identity,
        "random_weights": has_random_weights(material.store.provenance),
        "versions": environment("scipy", "scikit-learn"),
    }


def _kind_section(material: Material) -> dict[str, Any]:
    headline = HEADLINES[material.cohort.kind]
    told = {"title": headline.title, "key": headline.key}
    return {"kind": material.cohort.kind, "columns": list(material.task.columns), "headline": told}


def _sizes(material: Material, split: Split, number: int) -> dict[str, int]:
    fold = split.folds[number]
    return {f"n_{subset}": len(material.cohort.slides_of(fold.patients(subset))) for subset in ("train", "val", "test")}


def cohort_section(material: Material) -> dict[str, Any]:
    """Count slides, patients and tiles of the cohort."""
    cohort = material.cohort
    tiles = np.array([material.store.n_tiles[slide_id] for slide_id in cohort.slide_ids])
    patients = patients_of_class(material)
    return {
        "classes": _labels_counted(cohort) if cohort.kind == "labels" else [
            {"name": name, "slides": n, "patients": patients[name]} for name, n in cohort.counts().items()
        ],
        "tiles": {
            "min": int(tiles.min()), "median": int(np.median(tiles)), "max": int(tiles.max()),
            "total": int(tiles.sum()),
        },
        "has_patient_id": material.has_patient_id,
    }  # fmt: skip


def _labels_counted(cohort: Cohort) -> list[dict[str, Any]]:
    """Count slides and patients of both values of each label."""
    counts = []
    for column, (name, words) in enumerate(zip(cohort.columns, cohort.value_names, strict=True)):
        for value, word in enumerate(words):
            rows = [row for row in cohort.rows if row.values[column] == value]
            patients = len({row.patient_id for row in rows})
            counts.append({"name": f"{name}: {word}", "slides": len(rows), "patients": patients})
    return counts


def patients_of_class(material: Material, patients: Sequence[str] | None = None) -> dict[str, int]:
    """Count the patients that have a slide of each class, of all patients or of some."""
    cohort = material.cohort
    chosen = cohort.patients if patients is None else patients
    return {
        name: sum(any(row.label == label for row in cohort.patients[patient]) for patient in chosen)
        for label, name in enumerate(cohort.class_names)
    }


def calibration_section(test_rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Bin held-out scores; for more than two classes, those of the class that was said."""
    label = np.array([int(row["label"]) for row in test_rows])
    scores = np.array([[float(row[f"score_{name}"]) for name in classes] for row in test_rows])
    one_hot = np.eye(len(classes))[label]
    if len(classes) == 2:
        truth, score = label, scores[:, 1]
    else:
        truth, score = (scores.argmax(1) == label).astype(int), scores.max(1)
    curve = compute_reliability(truth, score, _N_BINS)
    halved = 1 if len(classes) > 2 else 2  # of two classes the Brier score is that of the positive one
    prevalence = one_hot.mean(0)
    return {
        "ece": curve.expected_calibration_error,
        "brier": float(((scores - one_hot) ** 2).sum(1).mean() / halved),
        "brier_of_prevalence": float(((prevalence - one_hot) ** 2).sum(1).mean() / halved),
        "n": len(label),
        "n_bins": _N_BINS,
        "bins": {
            "predicted": curve.mean_score.tolist(),
            "observed": curve.positive_rate.tolist(),
            "count": curve.count.tolist(),
        },
    }


def caveats(
    material: Material, split: Split, summary: Mapping[str, Any], *, random_weights: bool,
    evenness: Sequence[float], epochs_kept: Sequence[tuple[int, int]],
) -> list[str]:  # fmt: skip
    """Return what a reader must know before quoting the figures."""
    headline, kind = HEADLINES[material.cohort.kind], material.cohort.kind
    said = _PERMUTED.format(seed=material.permuted_labels, figure=headline.title, chance=headline.chance)
    tested = [patients_of_class(material, fold.test) for fold in split]
    counted = {"classes": tested, "survival": [{EVENT: counts[EVENT]} for counts in tested if EVENT in counts]}
    return ([] if material.permuted_labels is None else [said]) + find_caveats(
        Evidence(
            n_patients=len(material.cohort.patients),
            test_patients_of_class=counted.get(kind, []),
            n_validation_patients=[len(fold.val) for fold in split],
            n_used=len(material.cohort),
            n_left_out=len(material.labelled_left_out),
            auc={} if kind == "regression" else summary[headline.key],
            figure=headline.title,
            has_classes=kind == "classes",
            has_patient_id=material.has_patient_id,
            random_weights=random_weights,
            attention_evenness=evenness,
            epochs_kept=epochs_kept,
        )
    )
