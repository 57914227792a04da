"""Features of volumes to predictions, figures and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.encoders.adapter import Adapter
from wsi_dino.errors import SplitError
from wsi_dino.evaluation.ct_clip import ct_clip_figures
from wsi_dino.evaluation.label_evaluation import FoldScores, evaluate_labels
from wsi_dino.evaluation.label_folds import FoldRows, make_label_folds, rows_of_folds, split_of_subsets
from wsi_dino.evaluation.metrics import auc
from wsi_dino.evaluation.split import Split
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import file_sha256, fingerprint, write_json_atomically, write_text_atomically
from wsi_dino.radiology.adapted_files import require_unseen, tested_rows
from wsi_dino.radiology.beside_frozen import beside_frozen, note_beside_frozen
from wsi_dino.radiology.chest_run import RESULT_FILES, results_are_intact
from wsi_dino.radiology.ct_features import CtFeatures
from wsi_dino.radiology.ct_folds import CtSpec, ProbeData, ProbedFolds, probe_volumes
from wsi_dino.radiology.datasets.volume_row import VolumeRow, VolumeTable
from wsi_dino.radiology.predictions_table import predictions_csv
from wsi_dino.radiology.versions import versions

_FORMAT = "ct-task/1"
_SHOWN = 20

Render = Callable[[Mapping[str, Any], ProbedFolds], str]


@dataclass(frozen=True)
class AdaptedVolumes:
    """What the encoders gave that were adapted to each fold.

    Attributes:
        frozen: features by the encoder as published.
        of_fold: features of all volumes by the encoder of each fold.
        adapters: of each fold.
        told: what `protocol` says of them.
    """

    frozen: CtFeatures
    of_fold: tuple[CtFeatures, ...]
    adapters: tuple[Adapter, ...]
    told: Mapping[str, Any]


@dataclass(frozen=True)
class CtTask:
    """A data set of volumes, its features, and which of them could not be made.

    Attributes:
        table: the data set.
        features: where they lie; of encoders adapted to each fold, what stands for all of them in names and facts.
        volumes: row of each volume that was tried, by id.
        spec: how they become figures.
        task: name of a folder for these labels, or "".
        adapted: features by encoders adapted to each fold, which are judged instead.
        adapter: that was given with the encoder, or None.
    """

    table: VolumeTable
    features: CtFeatures
    volumes: Mapping[str, Mapping[str, Any]]
    spec: CtSpec
    task: str = ""
    adapted: AdaptedVolumes | None = None
    adapter: Adapter | None = None

    @property
    def used(self) -> tuple[VolumeRow, ...]:
        """Volumes that have features, in the order of the table."""
        return tuple(row for row in self.table.rows if self.volumes.get(row.volume_id, {}).get("status") == "done")

    @property
    def folder(self) -> Path:
        """Of its results."""
        return self.features.result_folder(self.task, self.spec.pool, self.spec.probe)

    def split(self) -> Split:
        """Return the data set's own split, or folds by patient.

        Raises:
            SplitError: no volume is left, a subset is empty, or there are too few patients.
        """
        rows = self.used
        if not rows:
            first = next((row["reason"] for row in self.volumes.values() if row.get("reason")), "")
            raise SplitError(f"Judging {self.table.name}: no volume has features. First reason: {first}")
        patients, targets = [row.patient_id for row in rows], self.targets
        if any(row.subset is None for row in rows):
            return make_label_folds(patients, targets, self.spec.n_folds, self.spec.seed)
        subsets = [str(row.subset) for row in rows]
        return split_of_subsets(patients, subsets, targets, self.spec.seed, f"subsets of {self.table.name}")

    @property
    def targets(self) -> np.ndarray:
        """float64 ``(n_used, n_labels)``."""
        return np.array([row.targets for row in self.used], np.float64)

    @property
    def contents(self) -> list[str]:
        """Hashes of what the used volumes hold."""
        return [str(self.volumes[row.volume_id].get("volume_fingerprint")) for row in self.used]

    def data(self, features: CtFeatures) -> ProbeData:
        """Read features of the used volumes."""
        rows = self.used
        ids = [row.volume_id for row in rows]
        by_attention = self.spec.pool == "attention"
        pooled = np.empty((len(rows), 0), np.float32) if by_attention else features.read_pooled(ids, self.spec.pool)
        patients = [row.patient_id for row in rows]
        return ProbeData(self.targets, patients, pooled, lambda row: features.read_slices(ids[row]))

    def probed(self, rows: Sequence[FoldRows]) -> ProbedFolds:
        """Train or look up in every fold, in the features of its own encoder where there is one for each."""
        if self.adapted is None:
            return probe_volumes(self.data(self.features), rows, self.spec)
        parts = [
            probe_volumes(self.data(features), [fold], self.spec)
            for features, fold in zip(self.adapted.of_fold, rows, strict=True)
        ]
        names = ("folds", "facts", "check", "models")
        return ProbedFolds(*([one for part in parts for one in getattr(part, name)] for name in names))

    def require_unseen(self, rows: Sequence[FoldRows]) -> None:
        """No tested volume may have been learnt from by an adapter: said by the files, not by the plan.

        Raises:
            CohortError: one was.
        """
        ids = [row.volume_id for row in self.used]
        if self.adapted is None:
            require_unseen(self.adapter, ids, self.contents, tested_rows(rows))
            return
        for adapter, fold in zip(self.adapted.adapters, rows, strict=True):
            require_unseen(adapter, ids, self.contents, fold.test)


def judge_volumes(task: CtTask, render: Render) -> dict[str, Any]:
    """Probe every fold and write metrics.json, predictions.csv and report.html.

    Where they are there already, from the same features, labels and settings, they are left as they are.

    Args:
        task: what to judge.
        render: makes the page.

    Returns:
        The content of metrics.json.

    Raises:
        SplitError: folds cannot be made, or a patient stands on two sides.
        StorageError: the disk is full or the run cannot be written.
    """
    folder = task.folder
    split = task.split()
    task.require_unseen(rows_of_folds(split, [row.patient_id for row in task.used]))
    mark = _fingerprint(task, split)

    stage, items = f"ct-task-{task.table.name}-{task.task}", [Item(folder.name, mark)]
    queue = ItemQueue(task.features.run, stage, items, lambda item, row: results_are_intact(folder, row))
    while (claimed := queue.take()) is not None:
        try:
            metrics, probed = _judged(task, split, mark)
            write_text_atomically(folder / "predictions.csv", _predictions(task, metrics, probed.folds))
            write_text_atomically(folder / "report.html", render(metrics, probed))
            write_json_atomically(folder / "metrics.json", metrics)
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, {"status": "done", "files": {name: file_sha256(folder / name) for name in RESULT_FILES}})
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def _predictions(task: CtTask, metrics: Mapping[str, Any], folds: Sequence[FoldScores]) -> str:
    ids, patients = [row.volume_id for row in task.used], [row.patient_id for row in task.used]
    return predictions_csv(task.table.label_names, ids, patients, metrics, folds, unit="volume")


def _fingerprint(task: CtTask, split: Split) -> str:
    used = task.used
    told = [[row.volume_id, row.patient_id, dict(row.baselines)] for row in used]
    made = [task.volumes[row.volume_id].get("fingerprint") for row in used]
    seen = [task.volumes[row.volume_id].get("volume_fingerprint") for row in used]
    labels = hashlib.sha256(np.ascontiguousarray(task.targets).data).hexdigest()
    parts = [told, made, seen, labels, task.table.label_names, dict(task.table.left_out), _failures(task)]
    return fingerprint(_FORMAT, parts, split.fingerprint, task.spec, task.features.identity, versions())


def _judged(task: CtTask, split: Split, mark: str) -> tuple[dict[str, Any], ProbedFolds]:
    rows = rows_of_folds(split, [row.patient_id for row in task.used])
    probed = task.probed(rows)
    figures = evaluate_labels(probed.folds, task.table.label_names, task.spec.evaluation)
    metrics = {
        "dataset": task.table.name,
        "task": task.task,
        "encoder": task.features.record.name,
        "input_px": task.features.identity["input_px"],
        **figures,
        "check": _check(task, probed),
        "paper_like": None,
        "ct_clip": _ct_clip(task, probed.folds),
        "baselines": _baselines(task, probed.folds, rows),
        "protocol": _protocol(task, split, rows, probed),
        "images": _volumes(task),
        "notes": [],
        "provenance": {**task.features.identity, "versions": versions(), "fingerprint": mark},
    }
    if task.adapted is not None:
        frozen = probe_volumes(task.data(task.adapted.frozen), rows, task.spec).folds
        name = task.adapted.frozen.record.name
        metrics |= beside_frozen(name, probed.folds, frozen, task.table.label_names, task.spec.evaluation)
    return {**metrics, "notes": _notes(task, metrics)}, probed


def _check(task: CtTask, probed: ProbedFolds) -> dict[str, Any] | None:
    if not probed.check:
        return None
    figures = evaluate_labels(probed.check, task.table.label_names, task.spec.evaluation)
    return {
        "model": "logistic regression by L-BFGS",
        "c": [facts["check_c"] for facts in probed.facts],
        "labels": {name: {"auc": label["auc"]} for name, label in figures["labels"].items()},
        "summary": figures["summary"],
    }


def _ct_clip(task: CtTask, folds: Sequence[FoldScores]) -> dict[str, Any] | None:
    """Return CT-CLIP's figures of one test set; means over folds would be no convention of theirs."""
    if not task.spec.ct_clip or len(folds) != 1:
        return None
    return ct_clip_figures(folds[0].targets, folds[0].scores, task.table.label_names)


def _baselines(task: CtTask, folds: Sequence[FoldScores], rows: Sequence[FoldRows]) -> dict[str, Any]:
    """Return what a number of the table says alone, on the same test volumes; its direction is learnt in training."""
    used, targets = task.used, task.targets
    found: dict[str, Any] = {}
    for name in used[0].baselines:
        values = np.array([row.baselines[name] for row in used])
        scored = [_baseline_fold(fold, each, values, targets) for fold, each in zip(folds, rows, strict=True)]
        figures = evaluate_labels(scored, task.table.label_names, task.spec.evaluation)
        found[name] = {"labels": {label: {"auc": each["auc"]} for label, each in figures["labels"].items()}}
    return found


def _baseline_fold(fold: FoldScores, rows: FoldRows, values: np.ndarray, targets: np.ndarray) -> FoldScores:
    ranks = np.argsort(np.argsort(values)) / max(1, len(values) - 1)
    scores = np.repeat(ranks[:, None], targets.shape[1], axis=1)
    for label in range(targets.shape[1]):
        known = rows.train[~np.isnan(targets[rows.train, label])]
        if auc(targets[known, label], values[known]) < 0.5:
            scores[:, label] = 1 - scores[:, label]
    return FoldScores(fold.targets, scores[rows.test], fold.patient_id, fold.val_targets, scores[rows.val], fold.rows)


def _protocol(task: CtTask, split: Split, rows: Sequence[FoldRows], probed: ProbedFolds) -> dict[str, Any]:
    spec = task.spec
    settings = {"linear": spec.linear, "knn": {"k": spec.ks, "metric": spec.metrics, "weighting": spec.weightings}}
    model: Any = spec.attention if spec.pool == "attention" else settings[spec.probe]
    return {
        "split": split.scheme,
        "split_fingerprint": split.fingerprint,
        "validation": "by patient; scans and reconstructions of a patient stay together",
        "folds": [_fold_counts(task, each) for each in rows],
        "view": task.features.spec.model_dump(mode="json"),
        "view_in_words": task.features.spec.shown,
        "slices": "native axial, all of them, anterior up, the patient's right on the left",
        "token": task.features.identity["pooling"],
        "adaptation": None if task.adapted is None else dict(task.adapted.told),
        "pool": spec.pool,
        "model": "attention over slices" if spec.pool == "attention" else f"{spec.probe} probe",
        "probe": model.model_dump(mode="json") if hasattr(model, "model_dump") else model,
        "chosen": probed.facts,
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "figures": "mean over the folds in which a figure is defined",
        "intervals": "95 % percentile bootstrap over patients, drawn within each fold",
        "given_by_the_paper": ["every slice", "grey x 3", "mean", "one linear layer", "BCE", "learning_rate",
                               "batch_size", "n_epochs", "frozen encoder", "k-NN per label"],
        "not_given_by_the_paper": ["window", "resampling", "input_px", "token", "k", "metric", "weighting", "threshold",
                                   "optimiser", "validation", "averages"],
    }  # fmt: skip


def _fold_counts(task: CtTask, rows: FoldRows) -> dict[str, Any]:
    used = task.used
    counts = {}
    for name in ("train", "val", "test"):
        members = [used[row] for row in getattr(rows, name)]
        counts[name] = {
            "volumes": len(members),
            "scans": len({row.scan_id for row in members}),
            "patients": len({row.patient_id for row in members}),
        }
    return counts


def _failures(task: CtTask) -> list[dict[str, str]]:
    return [
        {"image": volume_id, "volume": volume_id, "reason": str(row.get("reason", ""))}
        for volume_id, row in task.volumes.items()
        if row.get("status") != "done"
    ]


def _volumes(task: CtTask) -> dict[str, Any]:
    failures, used = _failures(task), task.used
    states = [str(task.volumes[row.volume_id].get("hu_state")) for row in used]
    return {
        "in_table": len(task.table.rows) + len(task.table.left_out),
        "used": len(used),
        "patients": len({row.patient_id for row in used}),
        "slices": sum(int(task.volumes[row.volume_id].get("n_slices") or 0) for row in used),
        "hu": {state: states.count(state) for state in sorted(set(states))},
        "failed": len(failures),
        "failures": failures,
        "left_out": _counts(task.table.left_out.values()),
        "missing": len(task.table.missing),
        "missing_first": list(task.table.missing[:_SHOWN]),
        "not_in_table": len(task.table.unlabelled),
        "not_in_table_first": list(task.table.unlabelled[:_SHOWN]),
    }


def _counts(values: Any) -> dict[str, int]:
    listed = [str(value) for value in values]
    return {value: listed.count(value) for value in sorted(set(listed))}


def _notes(task: CtTask, metrics: Mapping[str, Any]) -> list[str]:
    notes = [*task.table.remarks]
    notes += [f"{n} volumes left out: {reason}" for reason, n in metrics["images"]["left_out"].items()]
    for name, baseline in metrics["baselines"].items():
        parts = [f"{label} {_text(each['auc'])}" for label, each in baseline["labels"].items()]
        notes.append(f"{name} of the table alone reaches on the same test volumes, AUC: {', '.join(parts)}")
    for name, label in metrics["labels"].items():
        notes += [f"AUC of {name}: {label['auc']['why']}"] if "why" in label["auc"] else []
    minimum = task.spec.evaluation.min_positives
    rare = [
        f"{name} ({each['n_positive']})" for name, each in metrics["labels"].items() if each["n_positive"] < minimum
    ]
    notes += [f"fewer than {minimum} positive test volumes: {', '.join(rare)}"] if rare else []
    if metrics["ct_clip"] is not None and metrics["ct_clip"]["summary"]:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics["ct_clip"]["summary"].items())
        notes.append(
            f"OPTIMISTIC, for comparison with CT-CLIP's paper only (cuts chosen on the test labels): {figures}"
        )
    notes += [note_beside_frozen(metrics["frozen"])] if "frozen" in metrics else []
    if str(task.features.identity.get("weights_source", "")).startswith("random:"):
        notes.append("RANDOM WEIGHTS: this network has learnt nothing; its figures are what pixels alone give")
    return notes


def _text(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "not defined"
    interval = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['value']:.3f}{interval}"
