"""Several ABMIL models as one batched computation: what one model's products are too small to fill an accelerator with.

Row ``k`` of every tensor belongs to model ``k``. Each model sees its own bags, packed end to end and padded only to the
longest *step* of the stack (steps hold several bags, so they are of nearly one length). `ABMIL.forward` is the
definition; the tests hold this file to it and to training one model at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.packed import rounded_dropout

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


@dataclass(frozen=True)
class StackedUnit:
    """One step of each model.

    Attributes:
        features: ``(n_models, n, embed_dim)`` in the dtype of the products; zero where padded.
        owner: int64 ``(n_models, n)``: index of the bag that an instance belongs to, -1 where padded.
        n_bags: most bags that a model has.
        keep: bool ``(n_models, n, hidden_dim)``: which hidden values dropout leaves; None = all.
    """

    features: Tensor
    owner: Tensor
    n_bags: int
    keep: Tensor | None = None


class StackedModels:
    """Weights of several models of one architecture as views of one matrix ``(n_models, n_weights)``.

    Args:
        models: of equal architecture, on the device to work on.
    """

    def __init__(self, models: Sequence[ABMIL]) -> None:
        self.template = models[0]
        self.flat = torch.stack([nn.utils.parameters_to_vector(model.parameters()).detach() for model in models])
        self.feature_scale = torch.stack([model.feature_scale for model in models])
        self._shapes = {name: parameter.shape for name, parameter in self.template.named_parameters()}

    def __len__(self) -> int:
        return len(self.flat)

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name, each ``(n_models, *shape)``, as views of `flat`."""
        parts = torch.split(flat, [shape.numel() for shape in self._shapes.values()], dim=1)
        return {
            name: part.reshape(len(flat), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def state(self, row: int) -> dict[str, Tensor]:
        """Return a copy of one model's state, on the CPU."""
        named = {name: value[0] for name, value in self.weights(self.flat[row : row + 1]).items()}
        named["feature_scale"] = self.feature_scale[row]
        return {name: value.detach().cpu().clone() for name, value in named.items()}

    def forward(self, flat: Tensor, feature_scale: Tensor, unit: StackedUnit) -> Tensor:
        """Return logits ``(n_models, n_bags, n_outputs)``; what stands in rows of absent bags is arbitrary but finite.

        Args:
            flat: ``(n_models, n_weights)``, all or some rows of this stack's.
            feature_scale: ``(n_models,)`` of the same rows.
            unit: a step of each of them.
        """
        weights, dtype = self.weights(flat), unit.features.dtype
        projection = (weights["projection.weight"] / feature_scale[:, None, None]).to(dtype)
        bias = weights["projection.bias"][:, None].to(dtype)
        hidden = torch.baddbmm(bias, unit.features, projection.mT)
        hidden = torch.relu(hidden) if self.template.relu else hidden
        if unit.keep is not None:
            hidden = hidden.where(unit.keep, 0) / (1 - rounded_dropout(self.template.dropout))
        alpha = _alpha(self._raw_attention(weights, hidden), unit)
        slide = (alpha.to(dtype) @ hidden).float()
        return torch.baddbmm(weights["head.bias"][:, None], slide, weights["head.weight"].mT)

    def _raw_attention(self, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        gate = torch.tanh((hidden @ weights["attention_v.weight"].to(hidden.dtype).mT).float())
        if self.template.gated:
            gate = gate * torch.sigmoid((hidden @ weights["attention_u.weight"].to(hidden.dtype).mT).float())
        return (gate @ weights["attention_w.weight"].mT)[..., 0]


def _alpha(raw: Tensor, unit: StackedUnit) -> Tensor:
    """Return attention weights ``(n_models, n_bags, n)``; zero for bags that a model does not have."""
    bags = torch.arange(unit.n_bags, device=raw.device)
    mine = unit.owner[:, None, :] == bags[None, :, None]
    lowest = torch.finfo(raw.dtype).min  # -inf would make an absent bag, and with it every gradient, NaN
    return torch.softmax(raw[:, None, :].masked_fill(~mine, lowest), 2) * mine


class StackedAdamW:
    """`wsi_dino.mil.adamw.AdamW` for each row of a stack, each with its own count of steps.

    Args:
        flat: the weights ``(n_models, n_weights)``; changed in place.
        weight_decay: times the learning rate, taken off every weight at each step.
    """

    def __init__(self, flat: Tensor, weight_decay: float) -> None:
        self._flat, self._weight_decay = flat, weight_decay
        self._first, self._second = torch.zeros_like(flat), torch.zeros_like(flat)
        self._n_steps = [0] * len(flat)

    @torch.no_grad()
    def step(self, rows: Sequence[int], gradient: Tensor, learning_rate: float) -> None:
        """Take one step of the models `rows` along `gradient` ``(len(rows), n_weights)``."""
        beta1, beta2 = _BETAS
        for row in rows:
            self._n_steps[row] += 1
        index = torch.tensor(rows, device=gradient.device)
        counts = [self._n_steps[row] for row in rows]
        first = self._first[index].lerp_(gradient, 1 - beta1)
        second = self._second[index].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self._first[index], self._second[index] = first, second
        root = second.sqrt_() / gradient.new_tensor([math.sqrt(1 - beta2**n) for n in counts])[:, None] + _EPSILON
        rate = gradient.new_tensor([learning_rate / (1 - beta1**n) for n in counts])[:, None]
        self._flat[index] = self._flat[index] * (1 - learning_rate * self._weight_decay) - rate * first / root
