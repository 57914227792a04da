"""Training a network on samples of volumes; goes on from its last epoch, whatever killed it. Imports torch.

Knows neither what the samples are nor what the loss means: classes and affinities are learned alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from wsi_dino.encoders.devices import resolve_precision
from wsi_dino.errors import DivergedError
from wsi_dino.heartbeat import note_progress
from wsi_dino.segmentation.training_state import read_state, write_state

_MAX_GRADIENT = 12.0  # nnU-Net's
_READ_AHEAD = 2


class TrainingSpec(BaseModel):
    """How a network is trained.

    Attributes:
        epochs: passes over the training cases.
        learning_rate: of AdamW, falling to 0 by a cosine after the warm-up.
        weight_decay: of AdamW.
        warmup_epochs: in which the rate rises linearly.
        seed: of weights, order, crops and views.
        precision: of the large products; auto = bf16 where the hardware multiplies it natively.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=20, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_epochs: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass(frozen=True)
class Sample:
    """One step's worth: arguments of the network, and what its answer is compared with."""

    inputs: tuple[Any, ...]
    target: Tensor


class SampleSource(Protocol):
    """Where samples come from; read by a thread beside the training."""

    def __len__(self) -> int:
        """Return samples an epoch."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a sample of item `index`, drawn by `rng`."""


Loss = Callable[[Tensor, Tensor], Tensor]
OnEpoch = Callable[[int, nn.Module], Mapping[str, float]]


@dataclass
class TrainingHistory:
    """One row an epoch: ``epoch``, ``loss``, ``seconds``, ``skipped_steps`` (gradient not finite), the caller's own."""

    rows: list[dict[str, float]] = field(default_factory=list)


def learning_rate(spec: TrainingSpec, step: int, steps_an_epoch: int) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine to 0.

    Examples:
        >>> spec = TrainingSpec(epochs=4, learning_rate=1.0, warmup_epochs=1)
        >>> [round(learning_rate(spec, step, 2), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    warm, total = spec.warmup_epochs * steps_an_epoch, spec.epochs * steps_an_epoch
    if step < warm:
        return spec.learning_rate * (step + 1) / warm
    part = (step - warm) / max(1, total - warm)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * part))


class Trainer:
    """One network in training.

    Args:
        network: with fresh weights; trained in place.
        source: of samples.
        loss: of answer and target.
        spec: how.
        device: torch's.
        checkpoint: file that each epoch is kept in; removed by nobody here.
        fingerprint: of everything that decides the result; a checkpoint of another one is not used.
        on_epoch: called after each epoch; what it returns joins the row of the epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        source: SampleSource,
        loss: Loss,
        spec: TrainingSpec,
        *,
        device: str,
        checkpoint: Path,
        fingerprint: str,
        on_epoch: OnEpoch = lambda epoch, network: {},
    ) -> None:
        self.network, self.source, self.loss, self.spec = network.to(device), source, loss, spec
        self.device, self.checkpoint, self.fingerprint = device, checkpoint, fingerprint
        self.on_epoch = on_epoch
        self._n_skipped = 0
        self.precision = resolve_precision(spec.precision, device, ("fp32", "bf16"))
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )

    def run(self) -> TrainingHistory:
        """Train from the last epoch that was kept, to the end.

        Raises:
            DivergedError: no step of an epoch had a finite gradient.
        """
        rows = read_state(self.checkpoint, self.fingerprint, self.network, self.optimiser)
        history = TrainingHistory(rows)
        for epoch in range(len(history.rows), self.spec.epochs):
            began = time.perf_counter()
            self._n_skipped = 0
            loss = self._epoch(epoch)
            row = {"epoch": epoch, "loss": loss, "seconds": round(time.perf_counter() - began, 2)}
            if self._n_skipped:
                row["skipped_steps"] = self._n_skipped
            self._require_some_steps(epoch)
            self.network.eval()
            history.rows.append({**row, **self.on_epoch(epoch, self.network)})
            write_state(self.checkpoint, self.fingerprint, self.network, self.optimiser, history.rows)
        self.network.eval()
        return history

    def _epoch(self, epoch: int) -> float:
        self.network.train()
        torch.manual_seed(self.spec.seed * 100_003 + epoch)  # of dropout, so that resuming changes nothing
        total = 0.0
        for number, sample in enumerate(self._samples(epoch)):
            rate = learning_rate(self.spec, epoch * len(self.source) + number, len(self.source))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            total += self._step(sample)
        return total / max(1, len(self.source) - self._n_skipped)

    def _samples(self, epoch: int) -> Iterator[Sample]:
        order = np.random.default_rng((self.spec.seed, epoch)).permutation(len(self.source))
        with ThreadPoolExecutor(1, "samples") as pool:
            waiting: list[Future[Sample]] = []
            for index in order:
                rng = np.random.default_rng((self.spec.seed, epoch, int(index)))
                waiting.append(pool.submit(self.source.sample, int(index), rng))
                if len(waiting) > _READ_AHEAD:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def _step(self, sample: Sample) -> float:
        inputs, target = moved(sample.inputs, self.device), sample.target.to(self.device)
        with autocast(self.device, self.precision):
            answer = self.network(*inputs)
        loss = self.loss(answer, target)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        note_progress()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_GRADIENT)
        if torch.isfinite(norm):
            self.optimiser.step()
            return float(loss.detach())
        self._n_skipped += 1  # one such step would make every weight NaN for good; it is rare, and counted
        return 0.0

    def _require_some_steps(self, epoch: int) -> None:
        if self._n_skipped and self._n_skipped == len(self.source):
            raise DivergedError(
                f"Training, epoch {epoch + 1}: no step had a finite gradient. Expected a rate at which it learns, got "
                f"{self.spec.learning_rate:g} in {self.precision}. Lower --lr."
            )


def learning_precision(device: str, depths: Collection[int]) -> Literal["auto", "fp32"]:
    """Return the format to learn in: fp32 where convolutions see exactly two slices on a CPU.

    There the gradient of the weights of a 3 x 3 x 3 convolution in bf16 is what memory happens to hold, NaN or not
    (torch 2.13 with oneDNN on AVX-512; of 1, 3, 4 ... slices it is right).

    Args:
        device: torch's.
        depths: numbers of slices that 3D convolutions see.
    """
    return "fp32" if device == "cpu" and 2 in depths else "auto"


def autocast(device: str, precision: str) -> Any:
    """Return the context in which large products run in `precision`."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16)


def moved(value: Any, device: str) -> Any:
    """Return tensors within tuples on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(moved(item, device) for item in value) if isinstance(value, tuple) else value
