"""One data set through one encoder at one size, to predictions, figures and a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.encoders.adapter import Adapter
from wsi_dino.errors import SplitError
from wsi_dino.evaluation.label_evaluation import EvaluationSpec, FoldScores, evaluate_labels
from wsi_dino.evaluation.label_folds import FoldRows, make_label_folds, rows_of_folds, split_of_subsets
from wsi_dino.evaluation.linear_probe import LinearModel, LinearProbeSpec, LogisticSpec
from wsi_dino.evaluation.paper_like import paper_like
from wsi_dino.evaluation.probing import ProbeSpec, probe_folds
from wsi_dino.evaluation.split import Split
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import file_sha256, fingerprint, write_json_atomically, write_text_atomically
from wsi_dino.radiology.adapted_files import SUFFIX, identity_of_all, require_unseen, tested_rows
from wsi_dino.radiology.beside_frozen import beside_frozen, note_beside_frozen
from wsi_dino.radiology.chest_features import ChestFeatures, ImageEncoder
from wsi_dino.radiology.chest_image import ChestView
from wsi_dino.radiology.datasets.image_set import ImageSet
from wsi_dino.radiology.datasets.nih14 import LABELS as NIH_LABELS
from wsi_dino.radiology.predictions_table import predictions_csv
from wsi_dino.radiology.versions import versions
from wsi_dino.run_folder import RunFolder, safe_name

_FORMAT = "chest-xray/1"
RESULT_FILES = ("metrics.json", "predictions.csv", "report.html")
_NO_FINDING = ("No Finding", "No_Finding", "no_finding")


class ChestSpec(BaseModel):
    """How features become figures.

    Attributes:
        probe: the paper's linear probe.
        check: logistic regression beside it.
        evaluation: thresholds, intervals.
        n_folds: folds by patient, where the data set has no split of its own.
        seed: of folds and of the validation patients.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    probe: LinearProbeSpec = LinearProbeSpec()
    check: LogisticSpec = LogisticSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    n_folds: int = Field(default=5, ge=2)
    seed: int = 0


@dataclass(frozen=True)
class AdaptedImages:
    """What the encoders gave that were adapted to each fold.

    Attributes:
        features: float32 ``(n_used, embed_dim)`` of all used images, one array a fold.
        identities: of the encoder of each fold.
        adapters: of each fold.
        told: what `protocol` says of them.
        encoder: that of the first fold, for pictures.
    """

    features: tuple[np.ndarray, ...]
    identities: tuple[dict[str, Any], ...]
    adapters: tuple[Adapter, ...]
    told: dict[str, Any]
    encoder: Any


@dataclass(frozen=True)
class Combination:
    """One encoder at one size on one data set.

    Attributes:
        images: those that `features` are of, and those that failed.
        encoder: its record and identity are told.
        view: what it was shown.
        features: of the images that could be read, by the frozen encoder.
        task: name of a folder for these labels, or "".
        adapted: features by encoders adapted to each fold, which are judged instead.
    """

    images: ImageSet
    encoder: ImageEncoder
    view: ChestView
    features: ChestFeatures
    task: str = ""
    adapted: AdaptedImages | None = None

    @property
    def used(self) -> ImageSet:
        """The images that could be read."""
        return self.images.only(self.features.rows.tolist())

    @property
    def identity(self) -> dict[str, Any]:
        """Of the encoder, or of those of all folds together."""
        own = self.encoder.identity()
        return own if self.adapted is None else identity_of_all(self.adapted.identities, self.encoder.spec.name)

    @property
    def shown_encoder(self) -> Any:
        """The encoder whose patches are shown: of the first fold, where there is one for each."""
        return self.encoder if self.adapted is None else self.adapted.encoder

    @property
    def name(self) -> str:
        """Of the folder of its results; that of an untrained network says so."""
        seed = self.encoder.identity().get("random_weights")
        untrained = "" if seed is None else f"-random-{seed}"
        return f"{safe_name(self.encoder_name)}@{self.view.size_px}{untrained}"

    @property
    def encoder_name(self) -> str:
        """As results tell it."""
        return self.encoder.spec.name + ("" if self.adapted is None else SUFFIX)

    def folder(self, run: RunFolder) -> Path:
        """Return where its results lie."""
        return task_folder(run, self.images.name, self.task) / self.name


def task_folder(run: RunFolder, dataset: str, task: str) -> Path:
    """Return the folder of all combinations of a data set (and task)."""
    folder = run.path / "radiology" / safe_name(dataset)
    return folder / safe_name(task) if task else folder


def judge(
    run: RunFolder,
    combination: Combination,
    spec: ChestSpec,
    *,
    render: Callable[[Mapping[str, Any], Sequence[FoldScores], Sequence[LinearModel]], str],
) -> dict[str, Any]:
    """Train the probes, judge them, and write metrics.json, predictions.csv and report.html.

    Where these are there already, from the same features, labels and settings, they are left as they are. The same
    input gives the same bytes on one machine.

    Args:
        run: the run folder.
        combination: what to judge.
        spec: the settings.
        render: makes the page of the content of metrics.json and the scores and models of the folds.

    Returns:
        The content of metrics.json.

    Raises:
        SplitError: folds cannot be made, or a patient stands on two sides.
        StorageError: the disk is full or the run cannot be written.
    """
    folder, used = combination.folder(run), combination.used
    split = split_of(used, spec)
    _require_unseen(combination, used, rows_of_folds(split, used.patient_ids))
    mark = _fingerprint(combination, used, split, spec)
    stage = f"chest-xray-{combination.images.name}-{combination.task}"
    queue = ItemQueue(run, stage, [Item(combination.name, mark)], lambda item, row: results_are_intact(folder, row))
    while (claimed := queue.take()) is not None:
        try:
            content = _judged(combination, used, split, spec, mark)
            metrics, folds, models = content
            write_text_atomically(
                folder / "predictions.csv",
                predictions_csv(used.label_names, used.image_ids, used.patient_ids, metrics, folds),
            )
            write_text_atomically(folder / "report.html", render(metrics, folds, models))
            write_json_atomically(folder / "metrics.json", metrics)
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, {"status": "done", "files": {name: file_sha256(folder / name) for name in RESULT_FILES}})
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def results_are_intact(folder: Path, row: Mapping[str, Any]) -> bool:
    """Return whether the files that a finished row promises are there with the same content."""
    files = row.get("files", {})
    return set(files) == set(RESULT_FILES) and all(
        (folder / name).is_file() and file_sha256(folder / name) == sha256 for name, sha256 in files.items()
    )


def _require_unseen(combination: Combination, used: ImageSet, rows: Sequence[FoldRows]) -> None:
    """No tested image may have been learnt from by an adapter: said by the files, not by the plan."""
    contents, adapted = combination.features.contents, combination.adapted
    if adapted is None:
        given = getattr(combination.encoder, "adapter", None)
        require_unseen(given, used.image_ids, contents, tested_rows(rows))
        return
    for adapter, fold in zip(adapted.adapters, rows, strict=True):
        require_unseen(adapter, used.image_ids, contents, fold.test)


def split_of(used: ImageSet, spec: ChestSpec) -> Split:
    """Return the data set's own split, or folds by patient.

    Raises:
        SplitError: folds cannot be made, or a patient stands on two sides.
    """
    if used.subsets is None:
        return make_label_folds(used.patient_ids, used.targets, spec.n_folds, spec.seed)
    return split_of_subsets(used.patient_ids, used.subsets, used.targets, spec.seed, used.scheme)


def _fingerprint(combination: Combination, used: ImageSet, split: Split, spec: ChestSpec) -> str:
    adapted = () if combination.adapted is None else combination.adapted.features
    arrays = (combination.features.features, used.targets, *adapted)
    parts = [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in arrays]
    identity = combination.identity
    told = [used.image_ids, used.patient_ids, used.label_names, used.remarks, combination.features.failures]
    return fingerprint(_FORMAT, parts, told, split.fingerprint, spec, combination.view, identity, versions())


_Judged = tuple[dict[str, Any], list[FoldScores], list[LinearModel]]


def _judged(combination: Combination, used: ImageSet, split: Split, spec: ChestSpec, mark: str) -> _Judged:
    rows = rows_of_folds(split, used.patient_ids)
    targets = used.targets.astype(np.float64)
    frozen = (combination.features.features,) * len(rows)
    features = frozen if combination.adapted is None else combination.adapted.features

    def probed(of_fold: Sequence[np.ndarray], model: ProbeSpec) -> tuple[list[FoldScores], list[LinearModel]]:
        made = [probe_folds(each, targets, used.patient_ids, [fold], model)
                for each, fold in zip(of_fold, rows, strict=True)]  # fmt: skip
        return [scored[0] for scored, _ in made], [models[0] for _, models in made]

    folds, models = probed(features, spec.probe)
    check_folds, check_models = probed(features, spec.check)
    figures = evaluate_labels(folds, used.label_names, spec.evaluation)
    check = evaluate_labels(check_folds, used.label_names, spec.evaluation)
    metrics = {
        "dataset": used.name,
        "task": combination.task,
        "encoder": combination.encoder_name,
        "input_px": combination.view.size_px,
        **figures,
        "check": {
            "model": "logistic regression by L-BFGS",
            "c": [model.facts["c"] for model in check_models],
            "labels": {name: {"auc": label["auc"]} for name, label in check["labels"].items()},
            "summary": check["summary"],
        },
        "paper_like": _paper_like(folds, used.label_names),
        "protocol": _protocol(combination, split, spec, rows),
        "images": _images(combination, used),
        "notes": [*_random(combination.encoder), *used.remarks, *_notes(figures, spec)],
        "provenance": {**combination.identity, "versions": versions(), "fingerprint": mark},
    }
    if combination.adapted is not None:
        others = probed(frozen, spec.probe)[0]
        metrics |= beside_frozen(combination.encoder.spec.name, folds, others, used.label_names, spec.evaluation)
        metrics["notes"] = [*metrics["notes"], note_beside_frozen(metrics["frozen"])]
    return metrics, folds, models


def _paper_like(folds: Sequence[FoldScores], label_names: Sequence[str]) -> dict[str, Any] | None:
    """Only for what the paper printed: the 14 findings of ChestX-ray14."""
    if not set(NIH_LABELS) <= set(label_names) or len(label_names) > len(NIH_LABELS) + 1:
        return None
    return paper_like(folds, label_names, no_finding=next((n for n in label_names if n in _NO_FINDING), None))


def _protocol(combination: Combination, split: Split, spec: ChestSpec, rows: Sequence[FoldRows]) -> dict[str, Any]:
    subsets = ("train", "val", "test")
    return {
        "split": split.scheme,
        "split_fingerprint": split.fingerprint,
        "validation": "by patient",
        "folds": [
            {name: {"images": len(getattr(each, name)), "patients": len(fold.patients(name))} for name in subsets}
            for each, fold in zip(rows, split, strict=True)
        ],
        "view": combination.view.model_dump(mode="json"),
        "view_in_words": combination.view.text,
        "token": combination.identity["pooling"],
        "adaptation": None if combination.adapted is None else combination.adapted.told,
        "probe": spec.probe.model_dump(mode="json"),
        "check": spec.check.model_dump(mode="json"),
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "figures": "mean over the folds in which a figure is defined",
        "intervals": "95 % percentile bootstrap over patients, drawn within each fold",
        "given_by_the_paper": ["one linear layer", "BCE", "learning_rate", "batch_size", "n_epochs", "frozen encoder"],
        "not_given_by_the_paper": ["optimiser", "schedule", "weight_decay", "token", "standardise", "view", "threshold",
                                   "validation", "averages"],
    }  # fmt: skip


def _images(combination: Combination, used: ImageSet) -> dict[str, Any]:
    failures = combination.features.failures
    return {
        "in_table": len(combination.images),
        "used": len(used),
        "patients": len(set(used.patient_ids)),
        "failed": len(failures),
        "failures": [{"image": name, "reason": reason} for name, reason in failures.items()],
        "not_in_table": len(combination.images.unlisted),
        "not_in_table_first": list(combination.images.unlisted[:20]),
    }


def _random(encoder: ImageEncoder) -> list[str]:
    seed = encoder.identity().get("random_weights")
    return [] if seed is None else [f"RANDOM WEIGHTS (seed {seed}): what an untrained network gives, nothing more"]


def _notes(figures: Mapping[str, Any], spec: ChestSpec) -> list[str]:
    notes = [
        f"AUC of {name}: {label['auc']['why']}" for name, label in figures["labels"].items() if "why" in label["auc"]
    ]
    rare = [
        f"{name} ({label['n_positive']})"
        for name, label in figures["labels"].items()
        if label["n_positive"] < spec.evaluation.min_positives
    ]
    if rare:
        notes.append(f"fewer than {spec.evaluation.min_positives} positive test images: {', '.join(rare)}")
    if spec.evaluation.threshold.endswith("-on-test"):
        notes.append(
            f"OPTIMISTIC: the thresholds were chosen on the test labels ({spec.evaluation.threshold}); figures at "
            "a threshold are better than they would be on new images"
        )
    return notes


def require_some(features: ChestFeatures, images: ImageSet) -> None:
    """Refuse to go on where no image could be read.

    Raises:
        SplitError: naming the first reason.
    """
    if not len(features.rows):
        first = next(iter(features.failures.items()), ("", ""))
        raise SplitError(f"Judging {images.name}: none of its {len(images)} images could be read. First: {first[1]}.")
