"""Training ABMIL on one fold: early stopping on validation, reproducible to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.adamw import AdamW
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.early_stopping import EarlyStopping
from wsi_dino.mil.gradient_sum import GradientSum
from wsi_dino.mil.lanes import Lanes, open_lanes
from wsi_dino.mil.objective import Objective
from wsi_dino.mil.packed import GradientBuffer, PackedWeights, Slope, Unit, Workspace, forward, gradient, rounded_rows

_UNIT_ROWS_CPU = (256, 512)  # smaller bags are joined until there are so many rows: tiny products are slow
_UNIT_ROWS_GPU = (131_072, 131_072)
_COUPLED_BAGS = 4  # times as many bags a step where they are compared with each other
_UNITS_WANTED = 8  # in a step, if its bags have rows enough, so that each lane gets work


class TrainingSpec(BaseModel):
    """How ABMIL is built and trained.

    Attributes:
        hidden_dim, attention_dim, gated, relu, dropout: see `ABMIL`.
        rescale: divide the features by the root mean square of the training features.
        learning_rate, weight_decay: of AdamW; the rate falls to zero by a cosine over `epochs`.
        epochs: at most.
        min_epochs: epochs before the first that may be kept: on a few validation slides the loss of
            a model that has hardly learnt is often the lowest.
        patience: epochs without a better validation loss before training stops; the best is kept.
        batch_bags: bags a step, at most; small cohorts take fewer, so that an epoch has `min_steps`.
        min_steps: steps an epoch has if there are bags enough.
        class_balanced: weight the loss by the inverse frequency of the classes.
        max_tiles: tiles drawn from a larger bag, anew each epoch, in training only; None = all.
        precision: of the large products; auto = bf16 where the hardware multiplies it natively.
        seed: of weights, order, dropout and drawing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_dim: int = Field(512, ge=1)
    attention_dim: int = Field(256, ge=1)
    gated: bool = True
    relu: bool = False
    dropout: float = Field(0.25, ge=0, lt=1)
    rescale: bool = True
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    epochs: int = Field(40, ge=1)
    min_epochs: int = Field(10, ge=0)
    patience: int = Field(15, ge=1)
    batch_bags: int = Field(8, ge=1)
    min_steps: int = Field(8, ge=1)
    class_balanced: bool = True
    max_tiles: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class TrainedFold:
    """The model at its best epoch, on the CPU and in eval mode.

    Attributes:
        model: the trained model.
        history: one row an epoch: ``epoch, learning_rate, train_loss, val_loss``.
        best_epoch: whose weights `model` has.
        precision: of the large products in training, ``"fp32"`` or ``"bf16"``.
    """

    model: ABMIL
    history: tuple[dict[str, float], ...]
    best_epoch: int
    precision: str


def train_fold(
    spec: TrainingSpec,
    bags: BagStore,
    truth: Mapping[str, Sequence[float]],
    train_ids: Sequence[str],
    val_ids: Sequence[str],
    objective: Objective,
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> TrainedFold:
    """Train on `train_ids`, stop by the loss on `val_ids`.

    The same arguments give the same model, bit for bit on one kind of device, whatever `threads`.

    Args:
        spec: architecture and recipe.
        bags: features of all slides named.
        truth: of each slide, as the objective wants it.
        train_ids: slides to learn from, each with at least one tile.
        val_ids: slides to stop by, likewise.
        objective: the loss, and how many outputs a model has.
        device: ``cpu`` or an accelerator.
        threads: lanes on a CPU; None = as many as torch would use.
        on_epoch: called with each row of the history.

    Raises:
        FeatureFileError: a feature file is broken.
        ConfigError: the loss is not finite, as with a learning rate far too high.
    """
    device = torch.device(device)
    with open_lanes(device, threads) as lanes:
        trainer = _Trainer(spec, bags, truth, tuple(train_ids), tuple(val_ids), objective, device, lanes)
        return trainer.run(on_epoch or (lambda row: None))


@dataclass(frozen=True)
class Batch:
    """Slides of one step and a seed for each: of dropout and drawn tiles."""

    slides: tuple[str, ...]
    seeds: tuple[int, ...]


def epoch_batches(
    spec: TrainingSpec, train_ids: Sequence[str], epoch: int, *, coupled: bool = False
) -> list[Batch]:  # fmt: skip
    """Deal the training slides of one epoch into steps; the same arguments deal them alike.

    With `coupled` bags a step has four times as many: a bag is compared with those of its step alone.

    Examples:
        >>> [len(batch.slides) for batch in epoch_batches(TrainingSpec(min_steps=2), list("abcdefg"), 0)]
        [3, 3, 1]
    """
    more = _COUPLED_BAGS if coupled else 1
    steps = max(1, min(-(-spec.min_steps // more), len(train_ids)))
    size = min(spec.batch_bags * more, max(1, len(train_ids) // steps))
    random = np.random.default_rng([spec.seed, 1, epoch])
    order = [train_ids[index] for index in random.permutation(len(train_ids))]
    groups = [tuple(order[start : start + size]) for start in range(0, len(order), size)]
    return [Batch(group, tuple(int(seed) for seed in random.integers(0, 2**63, len(group)))) for group in groups]


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return ``"bf16"`` or ``"fp32"``: what ``"auto"`` means on `device`, else `precision` itself."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bf16" if native else "fp32"


def measure_scale(bags: BagStore, slide_ids: Sequence[str]) -> float:
    """Return the root mean square of all feature values of these slides; 1 when all are zero.

    The mean stays in the features: taking it away, or scaling each feature by itself, made training
    on small cohorts overfit within a few epochs (efficientnet-lite0 on composite slides: loss on
    test slides 0.40 and 0.76 against 0.13).
    """
    count, squares = 0, 0.0
    for slide_id in slide_ids:
        features = bags.features(slide_id).astype(np.float64)
        count += features.size
        squares += float(np.square(features).sum())
    return math.sqrt(squares / count) or 1.0


class _Trainer:
    """State of one training: model, optimiser, and where features come from."""

    def __init__(
        self, spec: TrainingSpec, bags: BagStore, truth: Mapping[str, Sequence[float]], train_ids: tuple[str, ...],
        val_ids: tuple[str, ...], objective: Objective, device: torch.device, lanes: Lanes,
    ) -> None:  # fmt: skip
        self._spec, self._bags, self._objective, self._lanes, self._device = spec, bags, objective, lanes, device
        self._truth = {slide_id: torch.tensor(truth[slide_id], dtype=torch.float32) for slide_id in train_ids + val_ids}
        self._train_ids, self._val_ids = train_ids, val_ids
        self._precision = resolve_precision(spec.precision, device)
        self._dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        self._unit_rows = _UNIT_ROWS_CPU if device.type == "cpu" else _UNIT_ROWS_GPU
        self._model = build_model(spec, bags.embed_dim, objective.n_outputs)
        if spec.rescale:
            self._model.feature_scale.fill_(measure_scale(bags, train_ids))
        self._model.to(device)
        self._on_device: dict[str, Tensor] = {}
        self._gradients = GradientSum(self._model, self._dtype)
        self._scales = GradientBuffer(self._model, self._dtype).scales(
            PackedWeights.of(self._model, self._dtype, training=True)
        )
        self._optimizer = AdamW(self._model, spec.weight_decay)

    def run(self, on_epoch: Callable[[dict[str, float]], None]) -> TrainedFold:
        spec = self._spec
        stopping = EarlyStopping(spec.epochs, spec.min_epochs, spec.patience)
        goes_on = True
        while goes_on:
            rate = stopping.rate(spec.learning_rate)
            train_loss = self._train_epoch(len(stopping.history), rate)
            goes_on = stopping.add(rate, train_loss, self._validate(), lambda: _copy_state(self._model))
            on_epoch(stopping.history[-1])
        best = stopping.best(len(self._train_ids), spec.learning_rate)
        model = self._model.cpu().eval()
        model.load_state_dict(best)
        return TrainedFold(model, tuple(stopping.history), stopping.best_epoch, self._precision)

    def _train_epoch(self, epoch: int, rate: float) -> float:
        batches = epoch_batches(self._spec, self._train_ids, epoch, coupled=self._objective.couples_bags)
        losses = [self._step(list(batch.slides), batch.seeds, rate) for batch in batches]
        return float(sum(float(loss) for loss in losses) / len(losses))

    def _step(self, batch: list[str], seeds: Sequence[int], rate: float) -> Tensor:
        weights = PackedWeights.of(self._model, self._dtype, training=True)
        # the largest are begun first, so that the lanes end together
        groups = sorted(self._units(batch), key=lambda group: -self._rows(batch[i] for i in group))
        slope_of = self._slopes(batch, seeds, weights)

        def work(number: int, space: Workspace) -> Tensor:
            group, buffer = groups[number], self._gradients.borrow()
            unit = self._unit([batch[i] for i in group], space, seeds[group[0]])
            loss = gradient(weights, unit, space, buffer, slope_of(group))
            self._gradients.add(number, buffer)
            return loss

        losses = self._lanes.map(work, range(len(groups)))
        self._optimizer.step(self._gradients.take(), self._scales, rate, self._lanes)
        return torch.stack(losses).sum()

    def _slopes(self, batch: list[str], seeds: Sequence[int], weights: PackedWeights) -> Callable[[range], Slope]:
        """Return what tells the loss of each unit and its gradient.

        Where bags are coupled, the logits of the whole step are looked at first (the same seeds drop the same
        values again), so that no unit need hold them all.
        """
        objective, truth, bag_weights = self._objective, *self._known(batch)
        if not objective.couples_bags:
            return lambda group: lambda logits: objective.loss_and_gradient(logits, *_of(group, truth, bag_weights))
        loss, slopes = objective.loss_and_gradient(self._outputs(batch, weights, seeds), truth, bag_weights)
        return lambda group: lambda logits: (loss * len(group) / len(batch), *_of(group, slopes))

    def _outputs(self, slides: list[str], weights: PackedWeights, seeds: Sequence[int] | None = None) -> Tensor:
        """Return the logits ``(n_slides, n_outputs)``, in training with `seeds`."""

        def work(group: range, space: Workspace) -> Tensor:
            seed = None if seeds is None else seeds[group[0]]
            return forward(weights, self._unit([slides[i] for i in group], space, seed), space).logits

        return torch.cat(self._lanes.map(work, self._units(slides)))

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss on the validation slides, bags weighted as in training."""
        slides = list(self._val_ids)
        outputs = self._outputs(slides, PackedWeights.of(self._model, self._dtype, training=False))
        truth, bag_weights = self._known(slides)
        parts = [range(len(slides))] if self._objective.couples_bags else self._units(slides)
        return sum(float(self._objective.loss(*_of(part, outputs, truth, bag_weights))) for part in parts)

    def _known(self, slides: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the truth of slides and their weights, which sum to one."""
        truth = torch.stack([self._truth[slide_id] for slide_id in slides])
        weights = self._objective.bag_weights(truth)
        return truth.to(self._device), (weights / weights.sum()).to(self._device)

    def _units(self, slides: Sequence[str]) -> list[range]:
        """Join neighbours until a unit is large enough, by sizes alone."""
        sizes = [self._rows([slide_id]) for slide_id in slides]
        enough = int(np.clip(sum(sizes) // _UNITS_WANTED, *self._unit_rows))
        groups, start, rows = [], 0, 0
        for index, size in enumerate(sizes):
            rows += size
            if rows >= enough or index == len(sizes) - 1:
                groups.append(range(start, index + 1))
                start, rows = index + 1, 0
        return groups

    def _rows(self, slides: Iterable[str]) -> int:
        """Instances of these slides together, as far as they may be drawn."""
        sizes = (self._bags.n_tiles[slide_id] for slide_id in slides)
        return sum(min(size, self._spec.max_tiles or size) for size in sizes)

    def _unit(self, slides: list[str], space: Workspace, seed: int | None = None) -> Unit:
        """Pack slides; `seed` = training (dropout and drawn tiles), None = all tiles."""
        parts = [self._features(slide_id) for slide_id in slides]
        if seed is not None and self._spec.max_tiles is not None:
            random = np.random.default_rng([seed, 1])
            parts = [_drawn(part, self._spec.max_tiles, random) for part in parts]
        lengths = [len(part) for part in parts]
        n = sum(lengths)
        features = space("features", rounded_rows(n), self._bags.embed_dim, self._dtype)
        features[n:].zero_()
        for part, rows in zip(parts, torch.split(features[:n], lengths), strict=True):
            # float16 to bfloat16 directly takes six times as long as by way of float32
            rows.copy_(space("sigmoids", *part.shape).copy_(part) if part.dtype == torch.float16 else part)
        return Unit(features, lengths, seed or 0)

    def _features(self, slide_id: str) -> Tensor:
        if slide_id in self._on_device:
            return self._on_device[slide_id]
        features = torch.from_numpy(self._bags.features(slide_id)).to(self._device)
        if self._device.type == "cuda" and self._fits(features):
            self._on_device[slide_id] = features
        return features

    def _fits(self, features: Tensor) -> bool:
        """Leave half of the device's memory to the work itself."""
        free, total = torch.cuda.mem_get_info(self._device)
        return free - features.nbytes > total // 2


def build_model(spec: TrainingSpec, embed_dim: int, n_classes: int) -> ABMIL:
    """Return a new model of `spec` with weights drawn from its seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return ABMIL(
            embed_dim, n_classes, spec.hidden_dim, spec.attention_dim, spec.dropout, spec.gated, spec.relu
        )  # fmt: skip


def _of(group: range, *tensors: Tensor) -> list[Tensor]:
    """Return the rows of a unit's bags."""
    return [tensor[group.start : group.stop] for tensor in tensors]


def drawn_rows(n_rows: int, max_tiles: int | None, random: np.random.Generator) -> np.ndarray:
    """Return the rows of a bag that take part in a step, in order: `max_tiles` drawn ones of a larger bag."""
    if max_tiles is None or n_rows <= max_tiles:
        return np.arange(n_rows)
    return np.sort(random.choice(n_rows, max_tiles, replace=False, shuffle=False))


def _drawn(features: Tensor, max_tiles: int, random: np.random.Generator) -> Tensor:
    rows = drawn_rows(len(features), max_tiles, random)
    return features if len(rows) == len(features) else features[torch.from_numpy(rows).to(features.device)]


def _copy_state(model: ABMIL) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
