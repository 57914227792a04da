"""An encoder adapted to labels of radiographs or volumes: LoRA learnt on one fold's training patients. Imports torch.

What differs between radiographs and volumes is in a `BagSource`: which images of an item are learnt from, and how a
head makes its logits of their vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wsi_dino.encoders.adapt import AdaptSpec, Bag, Material, adapt
from wsi_dino.encoders.adapt_cost import duration_in_words, measured_passes
from wsi_dino.encoders.adapter import Adapter, AdapterRecord, TrainedOn, fold_adapter_name, save_adapter
from wsi_dino.encoders.base_encoder import BaseEncoder
from wsi_dino.encoders.lora import lora_modules
from wsi_dino.errors import CohortError
from wsi_dino.evaluation.label_folds import FoldRows
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import fingerprint
from wsi_dino.radiology.adapt_request import AdaptRequest
from wsi_dino.radiology.adapted_files import FoldAdapters
from wsi_dino.run_folder import safe_name

_MEASURED = 4
HeadPool = Literal["each", "mean", "max", "mean+std"]


class BagSource(Protocol):
    """Images to learn from, by the row of their item."""

    @property
    def head_pool(self) -> HeadPool:
        """How the vectors of a bag become rows of logits: ``each`` by itself, or all as one."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What of the bags can be chosen, and what an image shows; JSON-able."""

    def bags(self, rows: Sequence[int], targets: np.ndarray, seed: int | None) -> Iterator[Bag]:
        """Yield bags whose label is float32 ``(n_logits, n_labels)``: drawn by `seed`, or the same each time.

        Raises:
            ImageError, VolumeError: an item can no longer be read.
        """


@dataclass(frozen=True)
class LabelAdaptation:
    """What adapters of all folds are learnt from, and how.

    Attributes:
        files: where they lie, and what the folds are called.
        base: the encoder.
        spec: the recipe; its seed is mixed with the number of the fold.
        source: gives images.
        label_names: ``(n_labels,)``.
        targets: float ``(n, n_labels)`` of 0, 1 and NaN.
        item_ids: ``(n,)``, for messages.
        contents: ``(n,)`` hashes of what each item holds.
        folds: rows of each.
    """

    files: FoldAdapters
    base: BaseEncoder
    spec: AdaptSpec
    source: BagSource
    label_names: tuple[str, ...]
    targets: np.ndarray
    item_ids: Sequence[str]
    contents: Sequence[str]
    folds: Sequence[FoldRows]

    def learnt_by(self, number: int) -> list[int]:
        """Return the rows that the adapter of a fold gets to know: training, and validation to stop by."""
        return [*self.folds[number].train.tolist(), *self.folds[number].val.tolist()]


class LabelHead(nn.Module):
    """Logits of all labels from the vectors of a bag, brought to one length each; starts at the labels' shares."""

    def __init__(self, dim: int, targets: np.ndarray, pool: HeadPool) -> None:
        super().__init__()
        self._pool = pool
        self.linear = nn.Linear(dim * (2 if pool == "mean+std" else 1), targets.shape[1])
        n_positive, n_negative = ((targets == value).sum(0) + 1 for value in (1, 0))
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.from_numpy(np.log(n_positive / n_negative).astype(np.float32)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return float32 ``(n or 1, n_labels)`` for ``(n, dim)``."""
        pooled = _pooled(vectors, self._pool)
        logits: Tensor = self.linear(nn.functional.layer_norm(pooled, pooled.shape[1:]))
        return logits


def _pooled(vectors: Tensor, pool: HeadPool) -> Tensor:
    if pool == "each":
        return vectors
    if pool == "max":
        return vectors.amax(0, keepdim=True)
    mean = vectors.mean(0, keepdim=True)
    if pool == "mean":
        return mean
    deviation = ((vectors - mean).square().mean(0, keepdim=True) + 1e-12).sqrt()
    return torch.cat([mean, deviation], dim=1)


def label_loss(logits: Tensor, targets: np.ndarray) -> Tensor:
    """Return the mean binary cross-entropy of known cells; an unknown cell (NaN) adds nothing."""
    truth = torch.from_numpy(np.asarray(targets, np.float32)).to(logits.device)
    known = ~truth.isnan()
    cells = nn.functional.binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
    return torch.where(known, cells, 0.0).sum() / known.sum().clamp(min=1)


def require_adaptable(base: BaseEncoder, spec: AdaptSpec) -> None:
    """Refuse an encoder without layers to adapt before anything is computed.

    Raises:
        EncoderError: it has none, as convolutional ones.
        WeightsError: its weights are not to be had.
    """
    lora_modules(base.load().backbone, base.record, spec.adapter.targets)


def require_no_twins(item_ids: Sequence[str], contents: Sequence[str], folds: Sequence[FoldRows]) -> None:
    """One picture under two names, learnt from and tested on, would leak.

    Raises:
        CohortError: naming both.
    """
    for rows in folds:
        learnt = {contents[row]: row for part in (rows.train, rows.val) for row in part}
        for row in rows.test:
            twin = learnt.get(contents[row])
            if twin is not None:
                raise CohortError(
                    f"Looking at what is to be learnt: {item_ids[twin]} and {item_ids[row]} hold the same and stand on "
                    "two sides of a fold. Remove one from the table, or give both one patient_id."
                )


@lru_cache(maxsize=1)
def _code_fingerprint() -> str:
    names = {
        "encoders": ("adapt.py", "adapter.py", "lora.py"),
        "radiology": ("adaptation.py", "chest_adaptation.py", "ct_adaptation.py"),
    }
    return fingerprint([
        resources.files(f"wsi_dino.{room}").joinpath(file).read_text(encoding="utf-8")
        for room, files in names.items()
        for file in files
    ])  # fmt: skip


def adapter_item(plan: LabelAdaptation, number: int, weights_sha256: str) -> Item:
    """Return the adapter of a fold with the fingerprint of all that can change it; test items are not in it."""
    rows = plan.folds[number]
    seen = [[(plan.contents[row], plan.targets[row].tolist()) for row in part.tolist()]
            for part in (rows.train, rows.val)]  # fmt: skip
    base = plan.base
    content = fingerprint(
        _code_fingerprint(), [[(name, [str(v) for v in values]) for name, values in part] for part in seen],
        plan.label_names, number, base.record, weights_sha256, base.chosen_pooling, base.chosen_px, base.device,
        plan.spec, plan.source.head_pool, plan.source.recipe,
    )  # fmt: skip
    return Item(f"fold-{number}", content)


def learn_all(plan: LabelAdaptation, request: AdaptRequest, n_items: int, unit: str) -> tuple[Adapter, ...]:
    """Say what it will take, and learn the adapter of each fold; see `learn_adapters`."""
    require_no_twins(plan.item_ids, plan.contents, plan.folds)
    if not all(_is_learnt(plan, item) for item in _items(plan)):
        request.say(_cost_in_words(plan, n_items, unit))
    with request.bars("adapt", "epochs") as report:
        report(0, total=plan.spec.epochs * len(plan.folds))
        return learn_adapters(plan, report)


def _items(plan: LabelAdaptation) -> list[Item]:
    sha256 = plan.base.load().sha256
    return [adapter_item(plan, number, sha256) for number in range(len(plan.folds))]


def _is_learnt(plan: LabelAdaptation, item: Item) -> bool:
    row = plan.files.run.read_row(plan.files.stage, item.key) or {}
    return row.get("fingerprint") == item.fingerprint and plan.files.is_intact(item, row)


def _cost_in_words(plan: LabelAdaptation, n_items: int, unit: str) -> str:
    base, spec, n_folds = plan.base, plan.spec, len(plan.folds)
    first = next(plan.source.bags(plan.learnt_by(0)[:_MEASURED], plan.targets, None)).images
    learning, _ = measured_passes(base, base.load().backbone, spec, first[:_MEASURED])
    n_learnt = max(len(plan.learnt_by(number)) for number in range(n_folds))
    passes = n_folds * spec.epochs * n_learnt * (1 if plan.source.head_pool == "each" else len(first))
    return (
        f"Adapting {base.name} (LoRA, rank {spec.adapter.rank}): {n_folds} folds learn from up to {n_learnt} {unit} in "
        f"at most {spec.epochs} epochs, at most {passes:,} images forward and back, "
        f"{duration_in_words(passes * learning)} on {base.device} besides reading, estimated from "
        f"{len(first[:_MEASURED])} images; then each fold encodes {n_items} {unit} with its own encoder. What is done "
        "already is kept."
    )


def learn_adapters(plan: LabelAdaptation, report: Callable[..., None] = lambda *_, **__: None) -> tuple[Adapter, ...]:
    """Learn the adapter of each fold that is not there yet; several processes share the folds.

    Args:
        plan: what to learn.
        report: told ``report(n_bags, total=, text=)``.

    Raises:
        EncoderError: the encoder cannot be adapted.
        ConfigError: the loss is not finite.
    """
    items = _items(plan)
    queue = ItemQueue(plan.files.run, plan.files.stage, items, plan.files.is_intact)
    while (claimed := queue.take()) is not None:
        number = int(claimed.item.key.rpartition("-")[2])
        try:
            adapter = _learn(plan, number, report)
        except BaseException:
            queue.give_back(claimed)
            raise
        told = adapter.record.trained_on
        queue.finish(claimed, {"status": "done", "sha256": adapter.sha256, "best_epoch": told.best_epoch})
    return plan.files.read(len(items))


def _learn(plan: LabelAdaptation, number: int, report: Callable[..., None]) -> Adapter:
    rows, base = plan.folds[number], plan.base
    spec = plan.spec.model_copy(update={"seed": int(fingerprint("adapt", plan.spec.seed, number)[:8], 16)})
    train, val = rows.train.tolist(), rows.val.tolist()
    material = Material(
        lambda epoch: plan.source.bags(train, plan.targets, int(fingerprint(spec.seed, epoch)[:8], 16)),
        lambda: plan.source.bags(val, plan.targets, None),
    )
    shown = f"fold {number + 1} of {len(plan.folds)}"

    def epoch_done(row: dict[str, float]) -> None:
        losses = f"loss {row['train_loss']:.3f}, on validation {row['val_loss']:.3f}"
        report(1, text=f"{shown}, epoch {row['epoch'] + 1:.0f}, {losses}")

    loaded = base.load()
    head = LabelHead(loaded.record.dim_of(base.chosen_pooling), plan.targets[rows.train], plan.source.head_pool)
    adapted = adapt(
        loaded.backbone, loaded.record, head, label_loss, material, spec, pooling=base.chosen_pooling,
        input_px=base.chosen_px, device=base.device, on_bag=lambda: report(0, text=shown), on_epoch=epoch_done,
    )  # fmt: skip
    report(spec.epochs - len(adapted.history))  # those that early stopping saved
    told = TrainedOn(
        task=plan.files.name, target=", ".join(plan.label_names), class_names=("0", "1"), fold=number,
        learnt_from=tuple(sorted({plan.contents[row] for row in plan.learnt_by(number)})),
        recipe={**spec.model_dump(mode="json"), **plan.source.recipe, "precision": adapted.precision},
        best_epoch=adapted.best_epoch, history=adapted.history,
    )  # fmt: skip
    record = AdapterRecord.of(
        loaded.record, name=fold_adapter_name(safe_name(plan.files.name), number), base_weights_sha256=loaded.sha256,
        pooling=base.chosen_pooling, input_px=base.chosen_px, spec=spec.adapter, modules=adapted.modules,
        trained_on=told,
    )  # fmt: skip
    return save_adapter(plan.files.folder_of(number), record, adapted.tensors)
