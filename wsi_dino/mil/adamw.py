"""AdamW over all weights of a model as one vector.

The same arithmetic as ``torch.optim.AdamW`` (a test compares them), without the two seconds that
importing ``torch.optim`` adds to the start of a command, and in slices that lanes share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsi_dino.mil.lanes import Lanes
from wsi_dino.mil.packed import Workspace

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_SLICE = 2**17


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019) over a flat view of the weights.

    Args:
        model: its parameters become views of one vector.
        weight_decay: times the learning rate, taken off every weight at each step.
    """

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        self._weights = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
        start = 0
        for parameter in model.parameters():
            parameter.data = self._weights[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        self._first, self._second = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        self._weight_decay = weight_decay
        self._n_steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor, scales: Tensor, learning_rate: float, lanes: Lanes) -> None:
        """Take one step along `gradient` times `scales`.

        Args:
            gradient: float32, flat, in the order of the model's parameters; spent.
            scales: float32, as long.
            learning_rate: of this step.
            lanes: share the slices.
        """
        self._n_steps += 1
        size = _SLICE if self._weights.device.type == "cpu" else len(self._weights)
        starts = range(0, len(self._weights), size)

        def update(start: int, space: Workspace) -> None:
            part = slice(start, start + size)
            self._update(part, gradient[part].mul_(scales[part]), learning_rate)

        lanes.map(update, starts)

    def _update(self, part: slice, gradient: Tensor, learning_rate: float) -> None:
        beta1, beta2 = _BETAS
        weights, first, second = self._weights[part], self._first[part], self._second[part]
        weights.mul_(1 - learning_rate * self._weight_decay)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = second.sqrt().div_(math.sqrt(1 - beta2**self._n_steps)).add_(_EPSILON)
        weights.addcdiv_(first, root, value=-learning_rate / (1 - beta1**self._n_steps))
