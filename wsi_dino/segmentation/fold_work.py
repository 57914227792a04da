"""Training a fold and scoring its held-out cases, each step once, resumed by fingerprint. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wsi_dino.encoders.devices import resolve_precision
from wsi_dino.errors import VolumeError
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.model_file import write_model_file
from wsi_dino.provenance import fingerprint
from wsi_dino.segmentation.case import Case, SegmentationDataset
from wsi_dino.segmentation.folds import SegmentationFold
from wsi_dino.segmentation.layout import SegmentationLayout
from wsi_dino.segmentation.learners import Learner
from wsi_dino.segmentation.losses import dice_cross_entropy
from wsi_dino.segmentation.model_file import read_network
from wsi_dino.segmentation.prepared import PreparedCase
from wsi_dino.segmentation.request import ScoringSpec
from wsi_dino.segmentation.scores import score_labels
from wsi_dino.segmentation.sliding_window import most_likely
from wsi_dino.segmentation.training import Sample, SampleSource, Trainer, TrainingSpec, autocast, moved
from wsi_dino.share import in_turn
from wsi_dino.volumes.nifti_channels import write_labels_like

Notice = Callable[[str], None]
_WATCHED_CASES, _WATCHED_TIMES = 8, 10
_ROW_FORMAT = 3


@dataclass(frozen=True)
class FoldContext:
    """What all folds share.

    Attributes:
        layout: where files lie.
        dataset: of the cases.
        learner: the way to segment.
        prepared: usable cases.
        training: recipe.
        scoring: of predictions.
        device: torch's.
        is_partition: whether each case is held out by one fold only.
        keep_predictions: whether label maps are written.
        n_test_views: of held-out slices, whose answers are averaged.
        advance: told of each epoch and each scored case.
    """

    layout: SegmentationLayout
    dataset: SegmentationDataset
    learner: Learner
    prepared: Mapping[str, PreparedCase]
    training: TrainingSpec
    scoring: ScoringSpec
    device: str
    is_partition: bool = True
    keep_predictions: bool = True
    n_test_views: int = 1
    advance: Notice = lambda text: None

    @property
    def precision(self) -> str:
        """Number format of the large products."""
        return resolve_precision(self.training.precision, self.device, ("fp32", "bf16"))

    def case(self, case_id: str) -> Case:
        """Return the case with its files."""
        return next(case for case in self.dataset.cases if case.case_id == case_id)

    def fold_fingerprint(self, fold: SegmentationFold) -> str:
        """Of everything that decides the model of a fold."""
        contents = [(case_id, self.prepared[case_id].fingerprint) for case_id in fold.train]
        facts = self.learner.facts(fold.number)
        return fingerprint(facts, self.learner.identity(), contents, self.training, self.precision)


def train_folds(context: FoldContext, folds: Sequence[SegmentationFold]) -> list[tuple[SegmentationFold, Any]]:
    """Train the models of `folds`, or find them trained; return each fold with the row of its model.

    Folds that another process trains are left to it for as long as there are others. A process with a part of the
    folds (`share`) returns that part.
    """
    for fold in in_turn(folds, only_own=True):
        train_fold(context, fold, may_wait=False)
    mine = in_turn(folds, only_own=True)
    return [(fold, train_fold(context, fold)) for fold in folds if fold in mine]


def train_fold(context: FoldContext, fold: SegmentationFold, *, may_wait: bool = True) -> dict[str, Any]:
    """Train the model of a fold, or find it trained; return its row, {} when another trains it and we may not wait.

    The weights after the last epoch are taken: held-out cases choose nothing.
    """
    path = context.layout.model(fold.number)
    item = Item(f"fold_{fold.number}", context.fold_fingerprint(fold))

    def is_intact(item: Item, row: dict[str, Any]) -> bool:
        return path.is_file() and path.stat().st_size == row.get("bytes")

    queue = ItemQueue(context.layout.run, context.layout.stage("train"), [item], is_intact)
    take = queue.take if may_wait else lambda: queue.take_if_free(item.key)
    while (claimed := take()) is not None:
        try:
            row = _train(context, fold, item.fingerprint)
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, row)
        context.layout.checkpoint(fold.number).unlink(missing_ok=True)
    return next(iter(queue.rows()), {})


def _train(context: FoldContext, fold: SegmentationFold, key: str) -> dict[str, Any]:
    torch.manual_seed(context.training.seed * 1009 + fold.number)
    facts = context.learner.facts(fold.number)
    network = context.learner.network(facts, fold.train)
    watch = _Watch(context, fold)
    trainer = Trainer(
        network, context.learner.samples(fold.train), dice_cross_entropy, context.training, device=context.device,
        checkpoint=context.layout.checkpoint(fold.number), fingerprint=key, on_epoch=watch,
    )  # fmt: skip
    history = trainer.run()
    path = context.layout.model(fold.number)
    training = {**context.training.model_dump(mode="json"), "precision": trainer.precision}
    write_model_file(path, network, facts.model_copy(update={"training": training}))
    return {
        "status": "done", "fold": fold.number, "n_train": len(fold.train), "n_val": len(fold.val),
        "history": history.rows, "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(sum(row["seconds"] for row in history.rows), 1), "bytes": path.stat().st_size,
    }  # fmt: skip


class _Watch:
    """Measures the loss on some held-out cases now and then, for the learning curve; it decides nothing."""

    def __init__(self, context: FoldContext, fold: SegmentationFold) -> None:
        self._context, self._fold = context, fold
        watched = list(fold.val)[:: max(1, len(fold.val) // _WATCHED_CASES)][:_WATCHED_CASES]
        self._source: SampleSource = context.learner.samples(watched)
        self._every = max(1, context.training.epochs // _WATCHED_TIMES)

    def __call__(self, epoch: int, network: nn.Module) -> dict[str, float]:
        last = self._context.training.epochs - 1
        self._context.advance(f"fold {self._fold.number}, epoch {epoch + 1} of {last + 1}")
        if epoch % self._every and epoch != last:
            return {}
        losses = [self._loss(network, self._source.sample(i, np.random.default_rng(i)))
                  for i in range(len(self._source))]  # fmt: skip
        return {"val_loss": float(np.mean(losses))} if losses else {}

    def _loss(self, network: nn.Module, sample: Sample) -> float:
        device = self._context.device
        with torch.inference_mode(), autocast(device, self._context.precision):
            answer = network(*moved(sample.inputs, device))
        return float(dice_cross_entropy(answer, sample.target.to(device)))


def score_fold(context: FoldContext, fold: SegmentationFold, model_row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Segment and score the held-out cases of a trained fold; return one row a case.

    A case that cannot be written or scored is a row with its reason.
    """
    keys = {case_id: f"{case_id}@{fold.number}" for case_id in fold.val}
    items = [
        Item(
            keys[case_id],
            fingerprint(
                model_row["fingerprint"], context.prepared[case_id].fingerprint, context.scoring,
                context.keep_predictions, context.n_test_views, context.dataset.metric_sets, _ROW_FORMAT,
            ),
        )
        for case_id in fold.val
    ]  # fmt: skip
    case_of = {key: case_id for case_id, key in keys.items()}
    queue = ItemQueue(
        context.layout.run, context.layout.stage("score"), items,
        lambda item, row: _has_prediction(context, fold, row),
    )  # fmt: skip
    network: nn.Module | None = None
    while (claimed := queue.take()) is not None:
        try:
            network = network or read_network(context.layout.model(fold.number), context.learner.facts(fold.number)).to(
                context.device
            )
            row = _score(context, fold, case_of[claimed.item.key], network)
        except VolumeError as error:
            row = {"case_id": case_of[claimed.item.key], "status": "failed", "message": str(error), "scores": []}
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, row)
        context.advance(f"fold {fold.number}, {row['case_id']}")
    return [{**row, "fold": fold.number} for row in queue.rows()]


def _has_prediction(context: FoldContext, fold: SegmentationFold, row: Mapping[str, Any]) -> bool:
    path = context.layout.prediction(row["case_id"], fold.number, is_alone=context.is_partition)
    return not context.keep_predictions or (path.is_file() and path.stat().st_size == row.get("bytes"))


def _score(context: FoldContext, fold: SegmentationFold, case_id: str, network: nn.Module) -> dict[str, Any]:
    began = time.perf_counter()
    chances = context.learner.probabilities(network, case_id, device=context.device, precision=context.precision)
    seconds = round(time.perf_counter() - began, 3)
    labels = most_likely(chances, context.learner.facts(fold.number).label_values)
    n_bytes = _keep(context, fold, case_id, labels) if context.keep_predictions else None
    prepared = context.prepared[case_id]
    scores = score_labels(
        prepared.labels(), labels, prepared.spacing_mm, context.dataset.classes, context.scoring,
        with_false_volumes="autopet" in context.dataset.metric_sets,
    )  # fmt: skip
    return {
        "case_id": case_id, "status": "done", "message": "", "seconds": seconds, "bytes": n_bytes, "scores": scores,
    }  # fmt: skip


def _keep(context: FoldContext, fold: SegmentationFold, case_id: str, labels: npt.NDArray[np.uint8]) -> int:
    path = context.layout.prediction(case_id, fold.number, is_alone=context.is_partition)
    write_labels_like(path, labels, context.case(case_id).grid_file.path)
    return path.stat().st_size
