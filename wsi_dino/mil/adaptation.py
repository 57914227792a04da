"""An encoder adapted to a slide task: LoRA learnt with an ABMIL head on tiles of one fold's training slides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wsi_dino import __version__
from wsi_dino.encoders.adapt import AdaptSpec, Bag, adapt
from wsi_dino.encoders.adapt import Material as AdaptMaterial
from wsi_dino.encoders.adapter import (
    Adapter,
    AdapterRecord,
    TrainedOn,
    fold_adapter_name,
    save_adapter,
)
from wsi_dino.encoders.base_encoder import BaseEncoder
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.read_ahead import read_ahead
from wsi_dino.errors import SlideError, TileGridError
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.split import Fold
from wsi_dino.item_queue import Item
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.training import TrainingSpec, build_model
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import safe_name


class SlideTiles(Protocol):
    """Tiles of slides; read elsewhere, since this room knows no slides.

    Methods that read raise a WsiDinoError when a slide is not there or cannot be read.
    """

    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what the run knows of each slide: ``status``, ``reason``, ``tiles``."""

    def check(self, slide_id: str) -> None:
        """Look whether the slide can be read, and is the one that was tiled."""

    def fingerprints(self, slide_id: str) -> tuple[str, str]:
        """Return what changes with the slide's content, and what changes with its tiles too."""

    def read(self, slide_id: str, indices: Sequence[int]) -> np.ndarray:
        """Return tiles, uint8 ``(n, tile_px, tile_px, 3)``."""

    def embed(self, encoder: Encoder, slide_ids: Collection[str], title: str) -> Mapping[str, str]:
        """Write the features of slides to the run; return the slides that failed, and why."""


@dataclass(frozen=True)
class Adaptation:
    """How the encoder is adapted to each fold.

    Attributes:
        base: the encoder.
        spec: the recipe; its seed is mixed with the number of the fold.
        head: shape, dropout and balance of the ABMIL head that is learnt beside the adapter and then dropped.
        n_tiles: drawn of each slide, anew each epoch.
    """

    base: BaseEncoder
    spec: AdaptSpec
    head: TrainingSpec
    n_tiles: int = 32


class SlideHead(nn.Module):
    """ABMIL for one bag at a time; the first bag it learns from sets the scale of the features."""

    is_scaled: Tensor

    def __init__(self, model: MilModel) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("is_scaled", torch.zeros((), dtype=torch.bool))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return logits ``(1, n_classes)`` for float32 ``(n, embed_dim)``."""
        if self.training and not self.is_scaled:
            self.model.feature_scale.copy_(vectors.detach().square().mean().sqrt().clamp_min(1e-6))
            self.is_scaled.fill_(True)
        logits = self.model(vectors[None], vectors.new_ones((1, len(vectors)), dtype=torch.bool)).outputs
        return logits


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Return what changes with the code that learns adapters."""
    names = {"encoders": ("adapt.py", "adapter.py", "lora.py"), "mil": ("adaptation.py", "abmil.py", "mil_model.py")}
    texts = [
        resources.files(f"wsi_dino.{room}").joinpath(file).read_text(encoding="utf-8")
        for room, files in names.items()
        for file in files
    ]
    return fingerprint(__version__, texts)


def adapter_item(
    cohort: Cohort, fold: Fold, number: int, adaptation: Adaptation, weights_sha256: str, tiles: SlideTiles
) -> Item:
    """Return the adapter of a fold with the fingerprint of all that can change it: test patients are not in it."""
    rows = {row.slide_id: row for row in cohort.rows}
    seen = {
        subset: [(slide_id, rows[slide_id].label, *tiles.fingerprints(slide_id)) for slide_id in slides]
        for subset, slides in _seen_slides(cohort, fold).items()
    }
    base, head = adaptation.base, adaptation.head
    content = fingerprint(
        code_fingerprint(), seen, cohort.class_names, cohort.target, number, base.record, weights_sha256,
        base.chosen_pooling, base.chosen_px, base.device, adaptation.spec, adaptation.n_tiles,
        head.hidden_dim, head.attention_dim, head.dropout, head.gated, head.relu, head.class_balanced,
    )  # fmt: skip
    return Item(f"fold-{number}", content)


def _seen_slides(cohort: Cohort, fold: Fold) -> dict[str, tuple[str, ...]]:
    """Return the slides that an adapter may learn from and stop by; it gets to know no others."""
    return {"train": cohort.slides_of(fold.train), "val": cohort.slides_of(fold.val)}


def learn_adapter(
    cohort: Cohort, fold: Fold, number: int, adaptation: Adaptation, tiles: SlideTiles, folder: Path, task: str,
    on_bag: Callable[[], None], on_epoch: Callable[[dict[str, float]], None],
) -> Adapter:  # fmt: skip
    """Learn the adapter of one fold and write it to `folder`.

    Args:
        cohort: slides with labels; only those of the fold's training and validation patients are read.
        fold: patients.
        number: of the fold.
        adaptation: how.
        tiles: reads them.
        folder: of the adapter.
        task: name of the task.
        on_bag: called after each slide.
        on_epoch: called with each row of the history.

    Raises:
        EncoderError: the encoder cannot be adapted.
        SlideError: a slide can no longer be read.
        ConfigError: the loss is not finite.
    """
    base, slides = adaptation.base, _seen_slides(cohort, fold)
    loaded = base.load()
    spec = adaptation.spec.model_copy(update={"seed": _fold_seed(adaptation.spec.seed, number)})
    dim = loaded.record.dim_of(base.chosen_pooling)
    head_spec = adaptation.head.model_copy(update={"seed": spec.seed})
    head = SlideHead(build_model(head_spec, dim, len(cohort.class_names)))
    adapted = adapt(
        loaded.backbone, loaded.record, head, _loss, _material(cohort, slides, adaptation, spec.seed, tiles), spec,
        pooling=base.chosen_pooling, input_px=base.chosen_px, device=base.device, on_bag=on_bag, on_epoch=on_epoch,
    )  # fmt: skip
    told = TrainedOn(
        task=task, target=cohort.target, class_names=cohort.class_names, fold=number,
        learnt_from=tuple(sorted({tiles.fingerprints(one)[0] for part in slides.values() for one in part})),
        recipe={**spec.model_dump(mode="json"), "n_tiles": adaptation.n_tiles, "precision": adapted.precision},
        best_epoch=adapted.best_epoch, history=adapted.history,
    )  # fmt: skip
    record = AdapterRecord.of(
        loaded.record, name=fold_adapter_name(safe_name(task), number), base_weights_sha256=loaded.sha256,
        pooling=base.chosen_pooling, input_px=base.chosen_px, spec=spec.adapter, modules=adapted.modules,
        trained_on=told,
    )  # fmt: skip
    return save_adapter(folder, record, adapted.tensors)


def _fold_seed(seed: int, number: int) -> int:
    return int(fingerprint("adapt", seed, number)[:8], 16)


def _loss(logits: Tensor, label: int) -> Tensor:
    return nn.functional.cross_entropy(logits, torch.tensor([label], device=logits.device))


def _material(
    cohort: Cohort, slides: Mapping[str, Sequence[str]], adaptation: Adaptation, seed: int, tiles: SlideTiles
) -> AdaptMaterial:
    """Return bags of tiles drawn anew each epoch for training, and always the same ones for validation."""
    labels = {row.slide_id: row.label for row in cohort.rows}
    weights = _class_weights(adaptation.head, [labels[slide_id] for slide_id in slides["train"]], cohort.class_names)
    rows = tiles.rows()

    def bags(subset: str, order: Iterable[str], epoch: int) -> Iterator[Bag]:
        chosen = [
            (one, draw_tiles(int(rows[one]["tiles"]), adaptation.n_tiles, fingerprint(seed, subset, epoch, one)))
            for one in order
        ]
        for (slide_id, _), images in read_ahead(lambda one: _read(tiles, *one), chosen):
            yield Bag(images, labels[slide_id], float(weights[labels[slide_id]]))

    def training(epoch: int) -> Iterator[Bag]:
        order = np.random.default_rng([seed, epoch]).permutation(len(slides["train"]))
        return bags("train", [slides["train"][place] for place in order], epoch)

    return AdaptMaterial(training, lambda: bags("val", slides["val"], 0))


def _class_weights(head: TrainingSpec, labels: Sequence[int], class_names: Sequence[str]) -> np.ndarray:
    if not head.class_balanced:
        return np.ones(len(class_names))
    counts = np.bincount(labels, minlength=len(class_names))
    return np.asarray(len(labels) / (len(class_names) * np.maximum(counts, 1)))


def draw_tiles(n_tiles: int, wanted: int, seed: str) -> list[int]:
    """Return up to `wanted` different indices below `n_tiles`, rising; the same for the same hex `seed`.

    Examples:
        >>> draw_tiles(3, 8, "0f"), len(draw_tiles(100, 8, "0f"))
        ([0, 1, 2], 8)
    """
    if n_tiles <= wanted:
        return list(range(n_tiles))
    chosen = np.random.default_rng(int(seed, 16)).choice(n_tiles, wanted, replace=False, shuffle=False)
    return sorted(int(index) for index in chosen)


def _read(tiles: SlideTiles, slide_id: str, indices: Sequence[int]) -> np.ndarray:
    try:
        return tiles.read(slide_id, indices)
    except (SlideError, TileGridError) as error:
        raise SlideError(
            f"Adapting the encoder on slide {slide_id}: {error}\nEmpty its cell in the label table to go on without it."
        ) from error
