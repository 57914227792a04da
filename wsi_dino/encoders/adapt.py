"""Learning an adapter together with a head: images and labels in, low-rank changes of a frozen network out.

Slides, X-rays and CT slices are learnt by this one loop. What differs is in the callables: how a bag of
images comes about, what the head makes of its vectors, and what its label means. Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsi_dino.encoders.adapter import AdapterSpec
from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.devices import resolve_precision
from wsi_dino.encoders.encoder import normalisation, resized
from wsi_dino.encoders.lora import adapter_parameters, adapter_tensors, add_adapter
from wsi_dino.encoders.record import EncoderSpec, Pooling
from wsi_dino.errors import ConfigError, EncoderError

_LARGEST_GRADIENT = 1.0  # norm over all of a group; a first step on a new head may be far larger


class AdaptSpec(BaseModel):
    """How an adapter is learnt.

    Attributes:
        adapter: how it is built.
        epochs: at most.
        min_epochs: before the first that may be kept.
        patience: epochs without a better validation loss before training stops; the best is kept.
        learning_rate, head_learning_rate: of AdamW for the adapter and the head; both fall by a cosine.
        weight_decay: of both.
        batch_bags: bags a step.
        images_at_once: of a larger bag, parts of this size are computed twice instead of being kept.
        precision: of the network's products: ``auto`` takes bf16 where the device does it well, else fp32.
        seed: of the adapter's first values and of its dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: AdapterSpec = AdapterSpec()
    epochs: int = Field(default=10, ge=1)
    min_epochs: int = Field(default=2, ge=0)
    patience: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    head_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    batch_bags: int = Field(default=4, ge=1)
    images_at_once: int = Field(default=32, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Bag:
    """Images that have one loss: the tiles of a slide with its label, or a batch of images with theirs.

    Attributes:
        images: uint8 RGB ``(n, height, width, 3)``, square.
        label: what the loss takes.
        weight: of this bag's loss within its step.
    """

    images: np.ndarray
    label: Any
    weight: float = 1.0


@dataclass(frozen=True)
class Material:
    """Where bags come from; they are taken in order, a few at a time.

    Attributes:
        training: the bags of an epoch, by its number.
        validation: the bags to stop by, the same each time.
    """

    training: Callable[[int], Iterable[Bag]]
    validation: Callable[[], Iterable[Bag]]


@dataclass(frozen=True)
class Adapted:
    """An adapter at its best epoch.

    Attributes:
        tensors: on the CPU, under the names by which `adapter.save_adapter` writes them.
        modules: layers that it changes.
        history: one row an epoch: ``epoch, learning_rate, train_loss, val_loss``.
        best_epoch: whose values these are.
        precision: ``"fp32"`` or ``"bf16"``.
    """

    tensors: dict[str, Tensor]
    modules: tuple[str, ...]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    precision: str


Loss = Callable[[Tensor, Any], Tensor]
_Silent: Callable[..., None] = lambda *_, **__: None  # noqa: E731


def adapt(
    backbone: Backbone,
    record: EncoderSpec,
    head: nn.Module,
    loss: Loss,
    material: Material,
    spec: AdaptSpec,
    *,
    pooling: Pooling,
    input_px: int,
    device: str = "cpu",
    on_bag: Callable[[], None] = _Silent,
    on_epoch: Callable[[dict[str, float]], None] = _Silent,
) -> Adapted:
    """Train an adapter in `backbone` and `head`, stop by the validation loss, and return the best epoch's adapter.

    On one CPU with one number of threads the same arguments give the same adapter, bit for bit.

    Args:
        backbone: with its weights, not prepared for inference (`loading.load_backbone`); it is changed.
        record: of the encoder: its preprocessing.
        head: float32 vectors ``(n, embed_dim)`` of a bag to whatever `loss` takes; at its best epoch afterwards.
        loss: of the head's output and the bag's label, a scalar.
        material: bags to learn from and to stop by.
        spec: the recipe.
        pooling: of the tokens, as for `Encoder`.
        input_px: side of the square that the network sees.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        on_bag: called after each bag.
        on_epoch: called with each row of the history.

    Raises:
        EncoderError: the network has nothing to adapt, ``peft`` is missing, or a layer is passed over.
        ConfigError: there is no bag, or the loss is not finite.
    """
    trainer = _Trainer(backbone, record, head, loss, spec, pooling, input_px, device)
    return trainer.run(material, on_bag, on_epoch)


class _Trainer:
    """Network, head and optimiser of one adapter."""

    def __init__(
        self, backbone: Backbone, record: EncoderSpec, head: nn.Module, loss: Loss, spec: AdaptSpec,
        pooling: Pooling, input_px: int, device: str,
    ) -> None:  # fmt: skip
        self._spec, self._record, self._loss = spec, record, loss
        self.precision = training_precision(spec.precision, device, record)
        self.modules = add_adapter(backbone, record, spec.adapter, seed=spec.seed)
        self._network = AdaptedNetwork(backbone, record, pooling, input_px, device, self.precision, spec.images_at_once)
        self._backbone, self._head = self._network.backbone, head.to(device)
        self._groups = {
            "adapter": list(adapter_parameters(self._backbone).values()),
            "head": [value for value in self._head.parameters() if value.requires_grad],
        }
        self._rates = {"adapter": spec.learning_rate, "head": spec.head_learning_rate}
        self._optimizer = torch.optim.AdamW(
            [{"params": values, "name": name} for name, values in self._groups.items() if values],
            weight_decay=spec.weight_decay,
        )  # fmt: skip

    def run(self, material: Material, on_bag: Callable[[], None], on_epoch: Callable[..., None]) -> Adapted:
        history: list[dict[str, float]] = []
        best_loss, best_epoch, best = math.inf, 0, self._state()
        earliest = min(self._spec.min_epochs, self._spec.epochs)
        for epoch in range(self._spec.epochs):
            share = (1 + math.cos(math.pi * epoch / self._spec.epochs)) / 2
            train_loss = self._train(epoch, share, material.training(epoch), on_bag)
            val_loss = self._validate(material.validation(), on_bag)
            rate = self._spec.learning_rate * share
            row = {"epoch": epoch, "learning_rate": rate, "train_loss": train_loss, "val_loss": val_loss}
            history.append(row)
            on_epoch(row)
            if epoch + 1 >= earliest and val_loss < best_loss:
                best_loss, best_epoch, best = val_loss, epoch, self._state()
            if epoch + 1 >= earliest and epoch - best_epoch >= self._spec.patience:
                break
        if not math.isfinite(best_loss):
            raise self._diverged()
        tensors, head = best
        self._head.load_state_dict(head)
        return Adapted(tensors, self.modules, tuple(history), best_epoch, self.precision)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        head = {name: value.detach().clone() for name, value in self._head.state_dict().items()}
        return adapter_tensors(self._backbone), head

    def _diverged(self) -> ConfigError:
        return ConfigError(
            f"Adapting {self._record.name}: the validation loss was never a finite number. The learning rate of "
            f"{self._spec.learning_rate:g} is too high: lower --adapt-lr."
        )

    def _train(self, epoch: int, share: float, bags: Iterable[Bag], on_bag: Callable[[], None]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[group["name"]] * share
        self._network.train()
        self._head.train()
        losses = []
        with torch.random.fork_rng(devices=_cuda_devices(self._network.device)):
            torch.manual_seed(self._spec.seed * 1_000_003 + epoch + 1)
            for batch in _batches(bags, self._spec.batch_bags):
                losses.append(self._step(batch, on_bag))
        if not losses:
            raise ConfigError(f"Adapting {self._record.name}: there is no image to learn from.")
        return sum(losses) / len(losses)

    def _step(self, batch: list[Bag], on_bag: Callable[[], None]) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        total, weights = 0.0, sum(bag.weight for bag in batch)
        for bag in batch:
            loss = self._loss(self._head(self._network.vectors(bag.images)), bag.label) * (bag.weight / weights)
            torch.autograd.backward(loss)
            total += float(loss.detach())
            on_bag()
        self._check_reached()
        for values in self._groups.values():
            torch.nn.utils.clip_grad_norm_(values, _LARGEST_GRADIENT)
        self._optimizer.step()
        return total

    def _check_reached(self) -> None:
        missed = [name for name, value in adapter_parameters(self._backbone).items() if value.grad is None]
        if missed:
            raise EncoderError(
                f"Adapting {self._record.name}: its network passes over {len(missed)} layers of the adapter (the "
                f"first is {missed[0]}), which would never learn. Adapt other layers, or another encoder."
            )

    def _validate(self, bags: Iterable[Bag], on_bag: Callable[[], None]) -> float:
        self._network.eval()
        self._head.eval()
        total, weights = 0.0, 0.0
        with torch.no_grad():
            for bag in bags:
                total += float(self._loss(self._head(self._network.vectors(bag.images)), bag.label)) * bag.weight
                weights += bag.weight
                on_bag()
        if not weights:
            raise ConfigError(f"Adapting {self._record.name}: there is no image to stop by.")
        return total / weights


class AdaptedNetwork:
    """A network with an unmerged adapter: uint8 images to vectors through which gradients flow.

    The preprocessing is that of `Encoder`. Nothing is folded or merged, so that each layer computes what
    it was trained to; of the whole network only the adapter's dropout ever is in training mode.
    """

    def __init__(
        self, backbone: Backbone, record: EncoderSpec, pooling: Pooling, input_px: int, device: str,
        precision: str = "fp32", images_at_once: int = 32,
    ) -> None:  # fmt: skip
        backbone.fit_to(input_px)
        learnt = adapter_parameters(backbone)
        for name, value in backbone.named_parameters():  # fitting may have made new tables
            value.requires_grad_(name in learnt and value.requires_grad)
        self.backbone, self.device = backbone.eval().to(device), device
        self._record, self._pooling, self._input_px, self._at_once = record, pooling, input_px, images_at_once
        self._rounds = precision == "bf16"
        self._scale, self._shift = normalisation(record, device)

    def train(self) -> None:
        """Let the adapter's dropout work; the network's own stays in eval mode."""
        self.eval()
        for name, module in self.backbone.named_modules():
            if "lora_dropout" in name:
                module.train()

    def eval(self) -> None:
        """Compute without dropout."""
        self.backbone.eval()

    def vectors(self, images: np.ndarray) -> Tensor:
        """Return float32 ``(n, dim)`` for uint8 ``(n, height, width, 3)``."""
        parts = [torch.from_numpy(part) for part in _parts(images, self._at_once)]
        if torch.is_grad_enabled() and len(parts) > 1:
            vectors = [checkpoint(self._vectors, part, use_reentrant=False) for part in parts]
        else:
            vectors = [self._vectors(part) for part in parts]
        return torch.cat(vectors)

    def _vectors(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device).permute(0, 3, 1, 2)
        if pixels.shape[-1] != self._input_px:
            pixels = resized(pixels, self._input_px, self._record.interpolation)
        normalised = torch.addcmul(self._shift, pixels, self._scale)
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self._rounds):
            return self.backbone.vectors(normalised, self._pooling).float()


def training_precision(asked: str, device: str, record: EncoderSpec) -> str:
    """Return ``"bf16"`` or ``"fp32"``; fp16, whose gradients vanish without scaling, is never taken."""
    allowed = tuple(known for known in record.precisions if known != "fp16")
    return resolve_precision(asked, device, allowed)


def _cuda_devices(device: str) -> list[torch.device]:
    return [torch.device(device)] if device.startswith("cuda") else []


def _parts(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield np.ascontiguousarray(images[start : start + size])


def _batches(bags: Iterable[Bag], size: int) -> Iterator[list[Bag]]:
    batch: list[Bag] = []
    for bag in bags:
        batch.append(bag)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
