"""What every way of training shares: epochs, early stopping, features and truth of the slides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from wsi_dino.mil.adamw import AdamW
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.early_stopping import EarlyStopping
from wsi_dino.mil.lanes import Lanes
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.objective import Objective
from wsi_dino.mil.training import TrainedFold, TrainingSpec, build_model, drawn_rows, epoch_batches, measure_scale


class FoldTrainer:
    """State of one training: model, optimiser, and where features come from.

    Subclasses say how a step is taken and how the validation slides are looked at.

    Args:
        spec: model and recipe.
        bags: features of all slides named.
        truth: of each slide, as the objective wants it.
        train_ids: slides to learn from.
        val_ids: slides to stop by.
        objective: the loss.
        device: where to train.
        lanes: share the work of a step.
    """

    def __init__(
        self, spec: TrainingSpec, bags: BagStore, truth: Mapping[str, Sequence[float]], train_ids: tuple[str, ...],
        val_ids: tuple[str, ...], objective: Objective, device: torch.device, lanes: Lanes,
    ) -> None:  # fmt: skip
        self._spec, self._bags, self._objective, self._lanes, self._device = spec, bags, objective, lanes, device
        self._truth = {slide_id: torch.tensor(truth[slide_id], dtype=torch.float32) for slide_id in train_ids + val_ids}
        self._train_ids, self._val_ids = train_ids, val_ids
        self._precision = self._resolve_precision()
        self._model = build_model(spec, bags.embed_dim, objective.n_outputs)
        if spec.rescale:
            self._model.feature_scale.fill_(measure_scale(bags, train_ids))
        self._model.to(device)
        self._on_device: dict[str, Tensor] = {}
        self._optimizer = AdamW(self._model, spec.weight_decay)

    def _resolve_precision(self) -> str:
        raise NotImplementedError

    def _step(self, batch: list[str], seeds: Sequence[int], rate: float) -> Tensor:
        """Learn from slides, with a seed for each; return the loss, a scalar."""
        raise NotImplementedError

    def _validate(self) -> float:
        """Mean loss on the validation slides, bags weighted as in training."""
        raise NotImplementedError

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

    def _known(self, slides: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the truth of slides and their weights, which sum to one."""
        truth = torch.stack([self._truth[slide_id] for slide_id in slides])
        weights = self._objective.bag_weights(truth)
        return truth.to(self._device), (weights / weights.sum()).to(self._device)

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


def draw_tiles(features: Tensor, max_tiles: int, random: np.random.Generator) -> Tensor:
    """Return `max_tiles` rows of a larger bag, in order."""
    rows = drawn_rows(len(features), max_tiles, random)
    return features if len(rows) == len(features) else features[torch.from_numpy(rows).to(features.device)]


def _copy_state(model: MilModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
