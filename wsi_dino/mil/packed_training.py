"""ABMIL trained by the packed step: bags end to end, the gradient written by hand, lanes of one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.fold_trainer import FoldTrainer, draw_tiles
from wsi_dino.mil.gradient_sum import GradientSum
from wsi_dino.mil.packed import GradientBuffer, PackedWeights, Slope, Unit, Workspace, forward, gradient, rounded_rows
from wsi_dino.mil.training import resolve_precision

_UNIT_ROWS_CPU = (256, 512)  # smaller bags are joined until there are so many rows: tiny products are slow
_UNIT_ROWS_GPU = (131_072, 131_072)
_UNITS_WANTED = 8  # in a step, if its bags have rows enough, so that each lane gets work


class PackedTrainer(FoldTrainer):
    """Training of ABMIL; see `FoldTrainer`."""

    _model: ABMIL

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        self._unit_rows = _UNIT_ROWS_CPU if self._device.type == "cpu" else _UNIT_ROWS_GPU
        self._gradients = GradientSum(self._model, self._dtype)
        self._scales = GradientBuffer(self._model, self._dtype).scales(
            PackedWeights.of(self._model, self._dtype, training=True)
        )

    def _resolve_precision(self) -> str:
        return resolve_precision(self._spec.precision, self._device)

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
        return lambda group: lambda logits: (loss * len(group) / len(batch), _of(group, slopes)[0])

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
            parts = [draw_tiles(part, self._spec.max_tiles, random) for part in parts]
        lengths = [len(part) for part in parts]
        n = sum(lengths)
        features = space("features", rounded_rows(n), self._bags.embed_dim, self._dtype)
        features[n:].zero_()
        for part, rows in zip(parts, torch.split(features[:n], lengths), strict=True):
            # float16 to bfloat16 directly takes six times as long as by way of float32
            rows.copy_(space("sigmoids", *part.shape).copy_(part) if part.dtype == torch.float16 else part)
        return Unit(features, lengths, seed or 0)


def _of(group: range, *tensors: Tensor) -> list[Tensor]:
    """Return the rows of a unit's bags."""
    return [tensor[group.start : group.stop] for tensor in tensors]
