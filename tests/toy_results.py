"""Results of `mil` made up without training: predictions, splits and metrics that fit each other."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.evaluation.metrics import binary_metrics, multiclass_metrics


def write_result(
    run: Path, task: str, encoder: str, *, quality: float = 1.0, seed: int = 0, n_patients: int = 60, n_folds: int = 3,
    slides_each: int = 1, classes: Sequence[str] = ("Negative", "Positive"), fold_seed: int = 0,
    scores: np.ndarray | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """Write ``RUN/mil/TASK/ENCODER``; `quality` is how far the scores of the classes lie apart.

    `scores`, one a slide, stand in for drawn ones; `changes` are made in metrics.json.
    """
    rng, n_classes = np.random.default_rng([seed, *encoder.encode()]), len(classes)
    label = np.arange(n_patients) % n_classes
    fold_of = (np.arange(n_patients) // n_classes + fold_seed * (np.arange(n_patients) // 7)) % n_folds
    logits = (
        rng.normal(size=(n_patients * slides_each, n_classes)) + quality * np.eye(n_classes)[label.repeat(slides_each)]
    )
    drawn = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if scores is not None:
        drawn = np.stack([1 - scores, scores], 1)
    rows, folds = [], []
    for fold in range(n_folds):
        slides = np.flatnonzero((fold_of == fold).repeat(slides_each))
        truth = label[slides // slides_each]
        figures = (
            binary_metrics(truth, drawn[slides, 1], 0.5) if n_classes == 2 else multiclass_metrics(truth, drawn[slides])
        )
        folds.append({"fold": fold, **figures, "threshold": 0.5 if n_classes == 2 else None, "n_test": len(slides)})
        for slide, y in zip(slides, truth, strict=True):
            each = {f"score_{name}": repr(float(p)) for name, p in zip(classes, drawn[slide], strict=True)}
            said = classes[int(drawn[slide, 1] >= 0.5)] if n_classes == 2 else classes[int(drawn[slide].argmax())]
            rows.append({
                "fold": fold, "subset": "test", "patient_id": f"P{slide // slides_each}", "slide_id": f"S{slide}",
                "target": classes[y], "label": int(y),
                "score": repr(float(drawn[slide, 1] if n_classes == 2 else drawn[slide].max())), **each,
                "predicted": said,
            })  # fmt: skip
    folder = run / "mil" / task / encoder
    folder.mkdir(parents=True)
    _write_csv(folder / "predictions.csv", rows)
    _write_csv(folder / "splits.csv", _splits(fold_of, n_folds))
    names = [name for name in ("auc", "accuracy", "precision", "recall", "f1") if name in folds[0]]
    metrics: dict[str, Any] = {
        "task": task, "encoder": encoder, "target": task, "classes": list(classes), "folds": folds,
        "permuted_labels": None,
        "summary": {name: {"value": float(np.mean([fold[name] for fold in folds]))} for name in names},
        "protocol": {"threshold_policy": "fixed-0.5", "split_scheme": f"{n_folds}-fold, seed {fold_seed}"},
        "provenance": {"fingerprint": f"{task}-{encoder}", "random_weights": False},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))
    return folder


def _splits(fold_of: np.ndarray, n_folds: int) -> list[dict[str, Any]]:
    rows = []
    for fold in range(n_folds):
        for patient, own in enumerate(fold_of):
            subset = "test" if own == fold else "val" if own == (fold + 1) % n_folds else "train"
            rows.append({"fold": fold, "patient_id": f"P{patient}", "subset": subset})
    return rows


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
