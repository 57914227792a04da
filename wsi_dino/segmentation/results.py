"""What a segmentation experiment leaves: cases.csv, metrics.json, folds, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_dino.evaluation.published.volume_tables import volume_tables
from wsi_dino.provenance import environment, write_json_atomically, write_text_atomically
from wsi_dino.segmentation.case import SegmentationDataset
from wsi_dino.segmentation.folds import SegmentationFold
from wsi_dino.segmentation.layout import SegmentationLayout
from wsi_dino.segmentation.learners import Learner
from wsi_dino.segmentation.model_file import SegmentationModel
from wsi_dino.segmentation.preparing import PreparedCases
from wsi_dino.segmentation.request import SegmentRequest
from wsi_dino.segmentation.scores import CONVENTIONS, aggregated_dice, mean_over_cases
from wsi_dino.segmentation.training import TrainingSpec

CASE_COLUMNS = (
    "fold", "case_id", "patient_id", "class", "status", "dice", "dice_both_empty_1", "hd95_mm", "precision", "recall",
    "truth_voxels", "predicted_voxels", "common_voxels", "truth_ml", "predicted_ml", "false_positive_ml",
    "false_negative_ml", "seconds", "remarks", "message",
)  # fmt: skip
_AVERAGED = ("dice", "dice_both_empty_1", "hd95_mm", "precision", "recall")
_AVERAGING = "mean over foreground classes of a case, then over cases of all folds; per class over cases"


@dataclass(frozen=True)
class Outcome:
    """Everything that was found.

    Attributes:
        request, dataset, layout: what was asked, of what, and where results lie.
        folds: as used, cases that failed left out.
        prepared: of all cases.
        fold_rows: of `train_fold`, one a fold.
        case_rows: of `score_fold`, one a held-out case.
        atlas_rows: of `atlas_rows`.
        learner: the way to segment.
        timing: of encoding, and how large slices were shown.
        training, precision: recipe and number format.
        scheme: of the folds, in words.
        facts: of the first fold's model.
    """

    request: SegmentRequest
    dataset: SegmentationDataset
    layout: SegmentationLayout
    folds: Sequence[SegmentationFold]
    prepared: PreparedCases
    fold_rows: Sequence[Mapping[str, Any]]
    case_rows: Sequence[Mapping[str, Any]]
    atlas_rows: Sequence[Mapping[str, Any]]
    learner: Learner
    timing: Mapping[str, Any]
    training: TrainingSpec
    scheme: str
    facts: SegmentationModel
    precision: str

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Cases that could not be used or scored, each with its reason."""
        rows = [*self.prepared.failures, *(row for row in self.case_rows if row["status"] == "failed")]
        return [{"case_id": row["case_id"], "message": row["message"]} for row in rows]

    @property
    def scores(self) -> list[dict[str, Any]]:
        """One row a held-out case and class."""
        return [
            {"fold": row["fold"], "case_id": row["case_id"], "seconds": row["seconds"], **score}
            for row in self.case_rows
            for score in row["scores"]
        ]


def metrics_of(outcome: Outcome) -> dict[str, Any]:
    """Return the content of metrics.json."""
    scores = outcome.scores
    metrics: dict[str, Any] = {
        "dataset": outcome.dataset.name,
        "encoder": None if outcome.request.is_network else outcome.facts.encoder,
        "decoder": outcome.facts.decoder or outcome.facts.kind,
        "channels": [channel["name"] for channel in outcome.facts.channels],
        "n_cases": len({row["case_id"] for row in scores}),
        "n_failed": len(outcome.failures),
    }
    metrics |= {name: _described(scores, name, outcome) for name in _AVERAGED}
    metrics |= _challenge_metrics(outcome, scores)
    metrics["folds"] = [_fold_metrics(outcome, scores, row) for row in outcome.fold_rows]
    metrics["baselines"] = _baselines(outcome)
    metrics["published"] = volume_tables(outcome.dataset.published)
    metrics["seconds"] = _seconds(outcome)
    metrics["protocol"] = _protocol(outcome)
    metrics["failures"] = outcome.failures
    metrics["remarks"] = [*_about_the_encoder(outcome), *outcome.dataset.remarks]
    metrics["provenance"] = {
        "versions": environment("nibabel", "scipy", "scikit-learn"),
        "identity": outcome.facts.identity,
    }
    return metrics


def _about_the_encoder(outcome: Outcome) -> list[str]:
    """Return what must be read beside a figure: weights that are none, and what a licence asks."""
    if outcome.request.is_network:
        return []
    from wsi_dino.encoders.registry import get_record

    settings = outcome.request.encoder_settings
    near = [Path(settings[key]) for key in ("weights", "weights_dir") if settings.get(key) is not None]
    seed = outcome.facts.identity.get("random_weights")
    untrained = [] if seed is None else [f"The encoder's weights are random (seed {seed}): it has learned nothing."]
    return [*untrained, *get_record(outcome.facts.encoder, near=near).obligations]


def _described(scores: Sequence[Mapping[str, Any]], name: str, outcome: Outcome) -> dict[str, Any]:
    summary = mean_over_cases(scores, name)
    if name != "hd95_mm":
        return {**summary, "convention": CONVENTIONS[name]}
    scoring = outcome.request.scoring
    definition = {
        "max": "larger of the two directed 95th percentiles of surface distances",
        "pooled": "95th percentile of surface distances of both directions together",
    }[scoring.definition]
    return {**summary, "unit": "mm", "definition": definition, "empty_masks": scoring.empty}


def _challenge_metrics(outcome: Outcome, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "hecktor" in outcome.dataset.metric_sets:
        found["dice_aggregated"] = {**aggregated_dice(scores), "convention": "HECKTOR 2022, over all cases"}
    if "autopet" in outcome.dataset.metric_sets:
        for name in ("false_positive_ml", "false_negative_ml"):
            found[name] = {**mean_over_cases(scores, name), "unit": "ml", "convention": "autoPET, 18-connected"}
    return found


def _fold_metrics(outcome: Outcome, scores: Sequence[Mapping[str, Any]], fold_row: Mapping[str, Any]) -> dict[str, Any]:
    own = [row for row in scores if row["fold"] == fold_row["fold"]]
    brief = {
        name: {key: value for key, value in mean_over_cases(own, name).items() if not key.endswith("_per_class")}
        for name in ("dice", "hd95_mm")
    }
    return {
        "fold": fold_row["fold"], "n_train": fold_row["n_train"], "n_val": fold_row["n_val"], **brief,
        "training_minutes": round(fold_row["seconds"] / 60, 2), "epochs": len(fold_row["history"]),
    }  # fmt: skip


def _baselines(outcome: Outcome) -> dict[str, Any]:
    names = dict.fromkeys(str(row["baseline"]) for row in outcome.atlas_rows)
    rows = {name: [row for row in outcome.atlas_rows if row["baseline"] == name] for name in names}
    return {
        name: {metric: mean_over_cases(own, metric) for metric in ("dice", "hd95_mm")} for name, own in rows.items()
    }


def _seconds(outcome: Outcome) -> dict[str, Any]:
    epochs = [row["seconds"] for fold in outcome.fold_rows for row in fold["history"]]
    answered = [row["seconds"] for row in outcome.case_rows if row["status"] == "done"]
    n_encoded = outcome.timing.get("volumes_encoded", 0)
    encoding = outcome.timing.get("encoding_s", 0.0) / n_encoded if n_encoded else None
    return {
        "encoding_per_volume_and_view": None if encoding is None else round(encoding, 3),
        "per_epoch": round(sum(epochs) / len(epochs), 2) if epochs else None,
        "decoding_per_volume": round(sum(answered) / len(answered), 3) if answered else None,
    }


def _protocol(outcome: Outcome) -> dict[str, Any]:
    request = outcome.request
    facts = outcome.facts.model_dump(mode="json", exclude={"identity", "fold", "format", "training"})
    return {
        "split": outcome.scheme,
        "averaging": _AVERAGING,
        "model": facts,
        "features": None if request.is_network else request.features.model_dump(mode="json"),
        "layers": outcome.facts.identity.get("layers", []),
        "shown_px": outcome.timing.get("shown_px"),
        "enlargement": outcome.timing.get("enlargement"),
        "training": {**outcome.training.model_dump(mode="json"), "precision": outcome.precision},
        "selection": "weights of the last epoch; held-out cases choose nothing",
        "limit": request.n_cases,
    }


def case_table(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the rows of cases.csv: one a held-out case and class, one for each case that failed."""
    patients = {case.case_id: case.patient_id for case in outcome.dataset.cases}
    remarks = {row["case_id"]: "; ".join(row.get("remarks", ())) for row in outcome.prepared.rows}
    rows = [{**score, "status": "done"} for score in outcome.scores]
    rows += [{**failure, "status": "failed"} for failure in outcome.failures]
    return [{**row, "patient_id": patients[row["case_id"]], "remarks": remarks.get(row["case_id"], "")} for row in rows]


def write_outcome(outcome: Outcome, all_folds: Sequence[SegmentationFold]) -> dict[str, Any]:
    """Write all results, and those of the latest command once more at the top of the run; return the metrics.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from wsi_dino.segmentation.report import render_report

    metrics = metrics_of(outcome)
    rows = case_table(outcome)
    folders = (outcome.layout.results, outcome.layout.run.path)
    for folder in folders:
        outcome.layout.run.write_table(folder / "cases.csv", rows, CASE_COLUMNS)
        write_json_atomically(folder / "metrics.json", metrics)
    page = render_report(outcome, metrics)
    for folder in folders:
        write_text_atomically(folder / "report.html", page)
    _write_folds(outcome.layout.data / "splits_final.json", all_folds)
    return metrics


def _write_folds(path: Path, folds: Sequence[SegmentationFold]) -> None:
    """Write the folds of all cases in nnU-Net's own form."""
    write_json_atomically(path, [{"train": list(fold.train), "val": list(fold.val)} for fold in folds])
