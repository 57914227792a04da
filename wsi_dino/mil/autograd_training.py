"""Training of any model by autograd: slides one by one, each with its own gradient, added in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_dino.mil.fold_trainer import FoldTrainer, draw_tiles
from wsi_dino.mil.gradient_sum import GradientSum
from wsi_dino.mil.layers.seeded_dropout import dropout_seed
from wsi_dino.mil.mil_model import ModelOutput
from wsi_dino.mil.packed import Workspace

BagLoss = Callable[[ModelOutput, int], Tensor]


class AutogradTrainer(FoldTrainer):
    """Training of models whose gradient nobody has written by hand; see `FoldTrainer`.

    A slide is worked on by one thread with dropout of its own seed, so the result does not depend on how many
    threads there are; and only the slides at work are in memory with their graph, never a whole step.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parameters = list(self._model.parameters())
        self._gradients = GradientSum(self._model, torch.float32)
        self._ones = torch.ones(sum(p.numel() for p in self._parameters), device=self._device)

    def _resolve_precision(self) -> str:
        return "bf16" if self._spec.precision == "bf16" else "fp32"

    def _step(self, batch: list[str], seeds: Sequence[int], rate: float) -> Tensor:
        self._model.train()
        loss_of = self._loss_of(batch, seeds)
        # the largest are begun first, so that the lanes end together
        order = sorted(range(len(batch)), key=lambda index: -self._bags.n_tiles[batch[index]])

        def work(number: int, space: Workspace) -> Tensor:
            index = order[number]
            loss = loss_of(self._look(batch[index], seeds[index]), index)
            buffer = self._gradients.borrow()
            self._write_gradient(loss, buffer.flat)
            self._gradients.add(number, buffer)
            return loss.detach()

        losses = self._lanes.map(work, range(len(order)))
        self._optimizer.step(self._gradients.take(), self._ones, rate, self._lanes)
        return torch.stack(losses).sum()

    def _loss_of(self, batch: list[str], seeds: Sequence[int]) -> BagLoss:
        """Return what tells the loss of a slide of the step.

        Where bags are coupled, all slides of the step are looked at first without a graph; the same seeds drop the
        same values again.
        """
        objective, truth, weights = self._objective, *self._known(batch)

        def extra(seen: ModelOutput, index: int) -> Tensor:
            here = slice(index, index + 1)
            return sum((loss(truth[here], weights[here]) for loss in seen.extra_losses), seen.outputs.new_zeros(()))

        def alone(seen: ModelOutput, index: int) -> Tensor:
            known = truth[index : index + 1], weights[index : index + 1]
            return extra(seen, index) + sum(share * objective.loss(o, *known) for share, o in seen.learnt_streams)

        if not objective.couples_bags:
            return alone
        slopes = self._slopes(batch, seeds, truth, weights)

        def coupled(seen: ModelOutput, index: int) -> Tensor:
            parts = zip(seen.learnt_streams, slopes, strict=True)
            return extra(seen, index) + sum(
                _with_slope(stream, share * slope[index], share * loss / len(batch))
                for (share, stream), (loss, slope) in parts
            )

        return coupled

    def _slopes(
        self, batch: list[str], seeds: Sequence[int], truth: Tensor, weights: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Return loss and gradient at the outputs ``(n_bags, n_outputs)`` of each stream."""

        def work(index: int, space: Workspace) -> list[Tensor]:
            with torch.no_grad():
                return [stream for _, stream in self._look(batch[index], seeds[index]).learnt_streams]

        streams = zip(*self._lanes.map(work, range(len(batch))), strict=True)
        return [self._objective.loss_and_gradient(torch.cat(outputs), truth, weights) for outputs in streams]

    def _write_gradient(self, loss: Tensor, out: Tensor) -> None:
        parts = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        torch.cat([part.reshape(-1) for part in parts], out=out)

    def _look(self, slide_id: str, seed: int | None) -> ModelOutput:
        """Look at one slide; `seed` = training (dropout and drawn tiles), None = all tiles."""
        features = self._features(slide_id)
        if seed is not None and self._spec.max_tiles is not None:
            features = draw_tiles(features, self._spec.max_tiles, np.random.default_rng([seed, 1]))
        with self._products(), dropout_seed(seed or 0, self._device):
            mask = torch.ones((1, len(features)), dtype=torch.bool, device=self._device)
            return self._model(features[None].float(), mask)

    @contextmanager
    def _products(self) -> Iterator[None]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            yield

    def _validate(self) -> float:
        self._model.eval()

        def work(slide_id: str, space: Workspace) -> Tensor:
            with torch.no_grad():
                return self._look(slide_id, None).outputs.float()

        outputs = torch.cat(self._lanes.map(work, self._val_ids))
        return float(self._objective.loss(outputs, *self._known(self._val_ids)))


def _with_slope(outputs: Tensor, slope: Tensor, loss: Tensor) -> Tensor:
    """Return a scalar that is `loss` and whose gradient at the outputs is `slope`."""
    product = (outputs * slope).sum()
    return product - product.detach() + loss
