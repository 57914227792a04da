"""Training a model on one fold: early stopping on validation, reproducible to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from wsi_dino.errors import ConfigError
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.lanes import open_lanes
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.models import DEFAULT_MODEL, complete_hyperparameters, get_model, no_such_hyperparameter
from wsi_dino.mil.objective import CrossEntropy, Objective

if TYPE_CHECKING:
    from wsi_dino.mil.fold_trainer import FoldTrainer

_COUPLED_BAGS = 4  # times as many bags a step where they are compared with each other
ABMIL_FIELDS = ("hidden_dim", "attention_dim", "gated", "relu", "dropout")


class TrainingSpec(BaseModel):
    """Which model is built, how, and how it is trained.

    Attributes:
        model: its name, see `models`.
        options: its hyper-parameters, all of them; empty for ABMIL, which has those of the next line. Another model
            takes what is given beside the fields below as its own, `hidden_dim` and its neighbours too.
        hidden_dim, attention_dim, gated, relu, dropout: of ABMIL, see there.
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

    model: str = DEFAULT_MODEL
    options: dict[str, Any] = {}
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

    @model_validator(mode="before")
    @classmethod
    def _complete_options(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("model", DEFAULT_MODEL) == DEFAULT_MODEL:
            return given
        shared = {name: value for name, value in given.items() if name in cls.model_fields and name not in ABMIL_FIELDS}
        own = {name: value for name, value in given.items() if name not in shared}
        completed = complete_hyperparameters(get_model(given["model"]), {**given.get("options", {}), **own})
        return {**shared, "options": completed}

    @model_validator(mode="after")
    def _check_options(self) -> TrainingSpec:
        if self.model == DEFAULT_MODEL and self.options:
            raise ValueError(no_such_hyperparameter(DEFAULT_MODEL, min(self.options), ABMIL_FIELDS))
        return self

    @model_serializer(mode="wrap")
    def _without_those_of_others(self, handler: Callable[[TrainingSpec], dict[str, Any]]) -> dict[str, Any]:
        left_out = ("options",) if self.model == DEFAULT_MODEL else ABMIL_FIELDS
        return {name: value for name, value in handler(self).items() if name not in left_out}

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of the model, by name."""
        own = {name: getattr(self, name) for name in ABMIL_FIELDS}
        return own if self.model == DEFAULT_MODEL else dict(self.options)


@dataclass(frozen=True)
class TrainedFold:
    """The model at its best epoch, on the CPU and in eval mode.

    Attributes:
        model: the trained model.
        history: one row an epoch: ``epoch, learning_rate, train_loss, val_loss``.
        best_epoch: whose weights `model` has.
        precision: of the large products in training, ``"fp32"`` or ``"bf16"``.
    """

    model: MilModel
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
        trainer = _trainer_of(spec, objective)(
            spec, bags, truth, tuple(train_ids), tuple(val_ids), objective, device, lanes
        )
        return trainer.run(on_epoch or (lambda row: None))


def _trainer_of(spec: TrainingSpec, objective: Objective) -> type[FoldTrainer]:
    """Return the way in which a model is trained: the packed step for ABMIL, autograd or a solver for others."""
    from wsi_dino.mil.autograd_training import AutogradTrainer
    from wsi_dino.mil.linear_fit import LinearFit
    from wsi_dino.mil.packed_training import PackedTrainer

    record = get_model(spec.model)
    if record.needs_classes and not isinstance(objective, CrossEntropy):
        raise ConfigError(
            f"Training {spec.model}: its loss is defined for one class a slide, this target is of another kind. "
            "Choose another --model."
        )
    if spec.model == DEFAULT_MODEL:
        return PackedTrainer
    return LinearFit if record.is_convex else AutogradTrainer


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


def build_model(spec: TrainingSpec, embed_dim: int, n_outputs: int) -> MilModel:
    """Return a new model of `spec` with weights drawn from its seed, on the CPU."""
    record = get_model(spec.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return record.build(embed_dim, n_outputs, record.hyperparameters(**spec.hyperparameters))


def drawn_rows(n_rows: int, max_tiles: int | None, random: np.random.Generator) -> np.ndarray:
    """Return the rows of a bag that take part in a step, in order: `max_tiles` drawn ones of a larger bag."""
    if max_tiles is None or n_rows <= max_tiles:
        return np.arange(n_rows)
    return np.sort(random.choice(n_rows, max_tiles, replace=False, shuffle=False))
