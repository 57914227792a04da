"""The fast form of ABMIL's training step: bags packed end to end, the gradient written by hand.

`ABMIL.forward` is the definition; the tests hold this file to its autograd. What is gained:

- a *unit* (one bag, or several small ones end to end) is one set of matrix products, hardly padded;
- the products run in bfloat16 where the processor does that well, sums and weights stay float32;
- every intermediate lives in a workspace that is reused, so it stays in cache and nothing is
  allocated; tanh is taken as ``2 sigmoid(2x) - 1``, dropout from one random byte an element, both
  several times faster than the operators of that name;
- units of one step go to single-threaded lanes, each unit with its own gradient, summed in unit
  order: the result does not depend on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wsi_dino.mil.abmil import ABMIL

# the logits of a unit -> its loss, and the gradient of the step's loss at them
Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
_RANDOM_LEVELS = 256  # dropout is rounded to 1/256, so that a byte decides


@dataclass(frozen=True)
class PackedWeights:
    """The weights of one step as the products want them: cast, scaled for dropout, joined.

    Attributes:
        projection: ``(hidden_dim, embed_dim)``, times the dropout scale of ``h``, over the feature scale.
        bias: ``(hidden_dim,)``, times the dropout scale.
        gate: ``(branches * attention_dim, hidden_dim)``: twice V, then U.
        attention: float32 ``(attention_dim,)``, negated.
        head, head_bias: float32.
        dropout: as rounded; `scale` its ``1 / (1 - dropout)``.
        feature_scale: of the model.
    """

    projection: Tensor
    bias: Tensor
    gate: Tensor
    attention: Tensor
    head: Tensor
    head_bias: Tensor
    dropout: float
    scale: float
    feature_scale: Tensor
    gated: bool
    relu: bool

    @classmethod
    @torch.no_grad()
    def of(cls, model: ABMIL, dtype: torch.dtype, *, training: bool) -> PackedWeights:
        """Prepare the weights of `model` for units of `dtype`."""
        dropout = rounded_dropout(model.dropout) if training else 0.0
        scale = 1 / (1 - dropout)
        branches = [layer.weight for layer in (model.attention_v, model.attention_u) if layer is not None]
        gate = torch.cat([branch.to(dtype) for branch in branches])
        gate[: len(branches[0])].mul_(2)
        return cls(
            projection=(model.projection.weight * (scale / model.feature_scale)).to(dtype),
            bias=(model.projection.bias * scale).to(dtype),
            gate=gate,
            attention=-model.attention_w.weight[0],
            head=model.head.weight.detach(),
            head_bias=model.head.bias.detach(),
            dropout=dropout,
            scale=scale,
            feature_scale=model.feature_scale,
            gated=model.gated,
            relu=model.relu,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the large products."""
        return self.projection.dtype

    @property
    def attention_dim(self) -> int:
        """Length of ``V h``."""
        return len(self.attention)


class Workspace:
    """Buffers of one lane; they grow to the largest unit and are then reused."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, n_rows: int, n_columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a buffer ``(n_rows, n_columns)`` whose content is arbitrary."""
        size = n_rows * n_columns
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            self._buffers[name] = buffer = torch.empty(size + size // 4, dtype=dtype, device=self._device)
        return buffer[:size].view(n_rows, n_columns)


@dataclass(frozen=True)
class Unit:
    """One bag, or several small ones end to end.

    Attributes:
        features: ``(n, embed_dim)`` in the dtype of the products.
        lengths: instances of each bag; rows after their sum belong to no bag (see `rounded_rows`).
        seed: of the dropout.
    """

    features: Tensor
    lengths: Sequence[int]
    seed: int = 0

    def membership(self) -> Tensor:
        """Bool ``(n_bags, n)``: whose instance is it."""
        ends = np.cumsum(self.lengths)
        owner = np.searchsorted(ends, np.arange(len(self.features)), side="right")
        return torch.from_numpy(owner == np.arange(len(ends))[:, None]).to(self.features.device)


def rounded_rows(n: int) -> int:
    """Return `n` rounded up so that only 32 sizes occur between a power of two and the next.

    oneDNN compiles code for each new shape and keeps a thousand pieces of it. Bags of a thousand
    different sizes would be compiled anew at every step, which takes half as long as the step.

    Examples:
        >>> [rounded_rows(n) for n in (1, 1000, 1030, 20_001)]
        [32, 1024, 1056, 20480]
    """
    step = max(32, 2 ** (n.bit_length() - 6))
    return -(-n // step) * step


@dataclass
class Activations:
    """What the backward pass needs of the forward pass; all but `logits` lie in the workspace."""

    hidden: Tensor
    sigmoids: Tensor
    product: Tensor
    keep: Tensor | None
    alpha: Tensor
    slide: Tensor
    logits: Tensor


@torch.no_grad()
def forward(weights: PackedWeights, unit: Unit, space: Workspace) -> Activations:
    """Run the packed forward pass of one unit."""
    n, hidden_dim = len(unit.features), len(weights.bias)
    shape, device = (n, hidden_dim), unit.features.device
    keep = dropout_mask(weights.dropout, shape, unit.seed, weights.dtype, device) if weights.dropout else None
    hidden = space("hidden", n, hidden_dim, weights.dtype)
    torch.addmm(weights.bias, unit.features, weights.projection.t(), out=hidden)
    if weights.relu:
        hidden.clamp_min_(0)
    _keep(hidden, keep)
    sigmoids, product = _gate(weights, hidden, space)
    raw = torch.mv(product, weights.attention)
    alpha = torch.where(unit.membership(), raw, float("-inf")).softmax(1)
    slide = (alpha.to(weights.dtype) @ hidden).float()
    logits = torch.addmm(weights.head_bias, slide, weights.head.t())
    return Activations(hidden, sigmoids, product, keep, alpha, slide, logits)


def _gate(weights: PackedWeights, hidden: Tensor, space: Workspace) -> tuple[Tensor, Tensor]:
    """Return (sigmoid(2 V h) | sigmoid(U h)) and minus the gated product ``(n, attention_dim)``.

    tanh(x) = 2 sigmoid(2 x) - 1, so the product is 2 s u - u, and its negative one fused operation.
    """
    n, width, a = len(hidden), len(weights.gate), weights.attention_dim
    linear = torch.mm(hidden, weights.gate.t(), out=space("gate", n, width, weights.dtype))
    sigmoids = space("sigmoids", n, width)
    torch.sigmoid(sigmoids.copy_(linear), out=sigmoids)
    product = space("product", n, a)
    if weights.gated:
        u = sigmoids[:, a:]
        torch.addcmul(u, sigmoids[:, :a], u, value=-2, out=product)
    else:
        torch.mul(sigmoids[:, :a], -2, out=product).add_(1)
    return sigmoids, product


def rounded_dropout(dropout: float) -> float:
    """Return the share of zeros that `dropout_mask` gives on average."""
    return round(dropout * _RANDOM_LEVELS) / _RANDOM_LEVELS


def dropout_mask(dropout: float, shape: tuple[int, int], seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return integers ``shape`` of the width of `dtype`, all ones (kept) or all zeros.

    Args:
        dropout: share of zeros, rounded to 1/256.
        shape: rows and columns; a mask with more rows begins with the same ones on a CPU.
        seed: of the drawing.
        dtype: of the values to be masked.
        device: where they are.
    """
    cut = round(dropout * _RANDOM_LEVELS)
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(seed)
        drawn = torch.empty(shape, dtype=torch.uint8, device=device).random_(generator=generator)
        return (drawn < cut).to(bits) - 1
    # numpy: torch compares bytes ten times more slowly
    raw = np.random.SFC64(seed).random_raw(-(-shape[0] * shape[1] // 8))
    dropped = raw.view(np.uint8)[: shape[0] * shape[1]].reshape(shape) < cut
    integers = dropped.view(np.int8).astype(np.int16 if bits == torch.int16 else np.int32)
    return torch.from_numpy(np.subtract(integers, 1, out=integers))


def _keep(values: Tensor, keep: Tensor | None) -> None:
    if keep is not None:
        values.view(keep.dtype).bitwise_and_(keep)


class GradientBuffer:
    """Room for the gradient of one unit: a flat vector in the order of the model's parameters, and views of it.

    What is written still lacks `scales`, which are the same for every unit and applied to their sum.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        device = next(model.parameters()).device
        self.flat = torch.empty(sum(shape.numel() for shape in shapes.values()), dtype=dtype, device=device)
        self._starts = dict(zip(shapes, np.cumsum([0, *(shape.numel() for shape in shapes.values())]), strict=False))
        self._shapes = shapes

    def __getitem__(self, name: str) -> Tensor:
        return self.part(name, *self._shapes[name])

    def part(self, name: str, *shape: int) -> Tensor:
        """Return a view that begins with parameter `name`; a larger shape reaches into those after it."""
        start = int(self._starts[name])
        return self.flat[start : start + int(np.prod(shape))].view(shape)

    def scales(self, weights: PackedWeights) -> Tensor:
        """Return the factor of each element: of dropout, of the features, of the doubled V."""
        vector = GradientBuffer.__new__(GradientBuffer)
        vector.flat = torch.ones_like(self.flat, dtype=torch.float32)
        vector._starts, vector._shapes = self._starts, self._shapes
        vector["projection.weight"].fill_(weights.scale / weights.feature_scale)
        vector["projection.bias"].fill_(weights.scale)
        vector["attention_w.weight"].fill_(-1)  # of minus the product
        vector["attention_v.weight"].fill_(2)  # V stands doubled in the product
        return vector.flat


@torch.no_grad()
def gradient(weights: PackedWeights, unit: Unit, space: Workspace, out: GradientBuffer, slope: Slope) -> Tensor:
    """Write the gradient of one unit's loss to `out`; return the loss, a scalar tensor."""
    seen = forward(weights, unit, space)
    loss, d_logits = slope(seen.logits)
    d_slide = d_logits @ weights.head
    # the mean is taken off inside the product: after rounding to bfloat16 little would be left of the differences
    mean = (seen.slide * d_slide).sum(1, keepdim=True).to(weights.dtype)
    d_alpha = torch.addmm(-mean, d_slide.to(weights.dtype), seen.hidden.t()).float()
    d_raw = (seen.alpha * (d_alpha - (seen.alpha * d_alpha).sum(1, keepdim=True))).sum(0)
    out["head.weight"].copy_(d_logits.t() @ seen.slide)
    out["head.bias"].copy_(d_logits.sum(0))
    out["attention_w.weight"][0].copy_(torch.mv(seen.product.t(), d_raw))
    d_gate = _gate_gradient(weights, seen, d_raw, space)
    d_hidden = torch.mm(
        d_gate, weights.gate, out=space("d_hidden", len(seen.hidden), seen.hidden.shape[1], weights.dtype)
    )
    d_hidden.addmm_(seen.alpha.t().to(weights.dtype), d_slide.to(weights.dtype))
    _keep(d_hidden, seen.keep)
    if weights.relu:
        d_hidden.mul_(seen.hidden > 0)
    torch.mm(d_gate.t(), seen.hidden, out=out.part("attention_v.weight", *weights.gate.shape))
    torch.mm(d_hidden.t(), unit.features, out=out["projection.weight"])
    torch.sum(d_hidden, 0, out=out["projection.bias"])
    return loss


def _gate_gradient(weights: PackedWeights, seen: Activations, d_raw: Tensor, space: Workspace) -> Tensor:
    """Return the gradient at (2 V h | U h) in the dtype of the products; spends the product.

    With s = sigmoid(2 V h), u = sigmoid(U h) and d the gradient of the product it is
    (2 d u s (1 - s) | d u (2 s - 1) (1 - u)).
    """
    n, a = seen.product.shape
    s = seen.sigmoids[:, :a]
    du = torch.mul(d_raw[:, None], -2 * weights.attention, out=space("d_product", n, a))  # 2 d
    d_gate = space("gate", n, len(weights.gate), weights.dtype)  # the linear values are spent by now
    if weights.gated:
        du.mul_(seen.sigmoids[:, a:])
    dus = torch.mul(du, s, out=seen.product)
    if weights.gated:
        u = seen.sigmoids[:, a:]
        inner = torch.sub(dus, du, alpha=0.5, out=du)
        d_gate[:, a:].copy_(inner.addcmul_(inner, u, value=-1))
    d_gate[:, :a].copy_(dus.addcmul_(dus, s, value=-1))
    return d_gate
