"""The attention network of the classic MIL sets, its gradient written by hand: one small bag a step.

Ilse, Tomczak and Welling (ICML 2018): fully connected layers of 256, 128 and 64 units with ReLU and
dropout, attention over the instances (plain or gated), one logistic output. A step on a bag of five
instances is so little work that calling a deep-learning library costs several times the arithmetic;
here a step is forty numpy calls on weights that stay in cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

WIDTHS = (256, 128, 64)
ATTENTION_DIM = 64

Array = np.ndarray[Any, np.dtype[Any]]


class ClassicSpec(BaseModel):
    """How the network is built and trained: stochastic gradient descent, a bag a step.

    Attributes:
        gated: with the sigmoid branch in the attention.
        learning_rate, momentum, weight_decay: of the descent.
        epochs: passes over the training bags; the last weights are kept, nothing is chosen on test bags.
        dropout: share of each layer's units set to zero in training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gated: bool = False
    learning_rate: float = Field(default=5e-4, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-3, ge=0)
    epochs: int = Field(default=100, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)


def _shapes(dim: int, gated: bool) -> dict[str, tuple[int, ...]]:
    sides = (dim, *WIDTHS)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (n_in, n_out) in enumerate(pairwise(sides)):
        shapes |= {f"weight_{layer}": (n_in, n_out), f"bias_{layer}": (n_out,)}
    for branch in ("v", "u") if gated else ("v",):
        shapes |= {f"attention_{branch}": (WIDTHS[-1], ATTENTION_DIM), f"attention_bias_{branch}": (ATTENTION_DIM,)}
    return shapes | {"attention_w": (ATTENTION_DIM,), "head": (WIDTHS[-1],), "head_bias": (1,)}


class Parameters:
    """All weights in one vector, so that a step of the descent is three operations, and a view of each by name.

    Attributes:
        flat: the vector.
    """

    def __init__(self, dim: int, gated: bool, dtype: Any = np.float32) -> None:
        shapes = _shapes(dim, gated)
        self.flat = np.zeros(sum(int(np.prod(shape)) for shape in shapes.values()), dtype)
        self._views: dict[str, Array] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + int(np.prod(shape))
            self._views[name] = self.flat[start:stop].reshape(shape)
            start = stop

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    @classmethod
    def drawn(cls, dim: int, gated: bool, random: np.random.Generator, dtype: Any = np.float32) -> Parameters:
        """Return weights uniform in +-1/sqrt(inputs of the layer), biases likewise."""
        result = cls(dim, gated, dtype)
        for name, view in result._views.items():
            n_in = view.shape[0] if view.ndim == 2 or name in ("attention_w", "head") else result._inputs_of(name)
            view[...] = random.uniform(-1, 1, view.shape) / np.sqrt(n_in)
        return result

    def _inputs_of(self, bias: str) -> int:
        layer = {"head_bias": "head"}.get(bias, bias.replace("bias", "weight") if bias[0] == "b" else "attention_v")
        return int(self._views[layer].shape[0])


@dataclass
class _Pass:
    """What the way back needs of the way forth."""

    inputs: list[Array]
    kept: list[Array]
    tanh: Array
    sigmoid: Array | None
    gate: Array
    alpha: Array
    slide: Array
    logit: float


class ClassicNetwork:
    """One network.

    Args:
        dim: length of an instance.
        spec: how it is built and trained.
        random: draws weights, dropout and order.
        dtype: of the weights.
    """

    def __init__(self, dim: int, spec: ClassicSpec, random: np.random.Generator, dtype: Any = np.float32) -> None:
        self.spec, self._random = spec, random
        self.weights = Parameters.drawn(dim, spec.gated, random, dtype)
        self.gradient = Parameters(dim, spec.gated, dtype)
        self._velocity = np.zeros_like(self.weights.flat)

    def logit(self, bag: Array) -> float:
        """Return the log-odds that a bag ``(n, dim)`` is positive."""
        return self._forward(bag, [None, None, None]).logit

    def attention(self, bag: Array) -> Array:
        """Return the attention weights ``(n,)`` of a bag; they sum to one."""
        return self._forward(bag, [None, None, None]).alpha

    def fit(self, bags: list[Array], labels: Array) -> None:
        """Train on all bags, `spec.epochs` times, in a new order each time."""
        for _ in range(self.spec.epochs):
            for index in self._random.permutation(len(bags)):
                self._step(bags[index], float(labels[index]))

    def _step(self, bag: Array, label: float) -> None:
        self.backward(bag, label, self._dropout(len(bag)))
        rate, decay = self.spec.learning_rate, self.spec.weight_decay
        self._velocity *= self.spec.momentum
        self._velocity += self.gradient.flat
        if decay:
            self._velocity += decay * self.weights.flat
        self.weights.flat -= rate * self._velocity

    def _dropout(self, n: int) -> list[Array | None]:
        share = self.spec.dropout
        if share == 0:
            return [None, None, None]
        drawn = self._random.random((n, sum(WIDTHS)), dtype=np.float32) >= share
        return list(np.split(drawn / np.float32(1 - share), np.cumsum(WIDTHS)[:-1], axis=1))

    def _forward(self, bag: Array, dropout: list[Array | None]) -> _Pass:
        w, hidden = self.weights, bag
        inputs, kept = [], []
        for layer in range(len(WIDTHS)):
            inputs.append(hidden)
            hidden = hidden @ w[f"weight_{layer}"]
            hidden += w[f"bias_{layer}"]
            mask = dropout[layer]
            slope = (hidden > 0).astype(hidden.dtype)
            kept.append(slope if mask is None else slope * mask)
            hidden = hidden * kept[-1]
        inputs.append(hidden)
        tanh = np.tanh(hidden @ w["attention_v"] + w["attention_bias_v"])
        sigmoid = _sigmoid(hidden @ w["attention_u"] + w["attention_bias_u"]) if self.spec.gated else None
        gate = tanh if sigmoid is None else tanh * sigmoid
        raw = gate @ w["attention_w"]
        alpha = np.exp(raw - raw.max())
        alpha /= alpha.sum()
        slide = alpha @ hidden
        return _Pass(inputs, kept, tanh, sigmoid, gate, alpha, slide, float(slide @ w["head"] + w["head_bias"][0]))

    def backward(self, bag: Array, label: float, dropout: list[Array | None]) -> float:
        """Write the gradient of a bag's cross-entropy to `gradient`; return the loss.

        Args:
            bag: ``(n, dim)``.
            label: 0 or 1.
            dropout: factor of each unit, ``(n, width)`` a layer, or None a layer.
        """
        w, g, seen = self.weights, self.gradient, self._forward(bag, dropout)
        hidden = seen.inputs[-1]
        d_logit = float(_sigmoid(seen.logit)) - label
        g["head"][:] = d_logit * seen.slide
        g["head_bias"][:] = d_logit
        d_slide = d_logit * w["head"]
        d_alpha = hidden @ d_slide
        d_raw = seen.alpha * (d_alpha - seen.alpha @ d_alpha)
        g["attention_w"][:] = d_raw @ seen.gate
        d_hidden = np.outer(seen.alpha, d_slide)
        d_gate = np.outer(d_raw, w["attention_w"])
        d_tanh = d_gate if seen.sigmoid is None else d_gate * seen.sigmoid
        self._branch("v", d_tanh * (1 - seen.tanh**2), hidden, d_hidden)
        if seen.sigmoid is not None:
            self._branch("u", d_gate * seen.tanh * seen.sigmoid * (1 - seen.sigmoid), hidden, d_hidden)
        for layer in reversed(range(len(WIDTHS))):
            d_hidden *= seen.kept[layer]
            np.dot(seen.inputs[layer].T, d_hidden, out=g[f"weight_{layer}"])
            d_hidden.sum(0, out=g[f"bias_{layer}"])
            if layer:
                d_hidden = d_hidden @ w[f"weight_{layer}"].T
        return float(np.logaddexp(0, seen.logit) - label * seen.logit)

    def _branch(self, name: str, d_linear: Array, hidden: Array, d_hidden: Array) -> None:
        np.dot(hidden.T, d_linear, out=self.gradient[f"attention_{name}"])
        d_linear.sum(0, out=self.gradient[f"attention_bias_{name}"])
        d_hidden += d_linear @ self.weights[f"attention_{name}"].T


def _sigmoid(x: Any) -> Any:
    return 0.5 * np.tanh(0.5 * x) + 0.5  # cannot overflow
