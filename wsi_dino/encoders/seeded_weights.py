"""Weights that depend on the names and shapes of tensors alone, the same with every torch. Imports torch.

torch's own random weights change with its version and with the order of layers, and timm starts some of them so
near to zero (the scales of layers at 1e-5) that whole blocks would not matter. These do not and are not.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import family_of

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

# A prime, so that the repetitions of the drawn values fall on other columns of a matrix each time.
_N_DRAWN = 1_048_583
_GAIN = 2**0.5


def build_seeded(record: EncoderSpec, seed: int) -> tuple[Backbone, str]:
    """Return the network of `record` with seeded weights, and its layout: digits of its tensors' names and shapes."""
    with torch.random.fork_rng(devices=[]), _NoInitialisation():
        torch.manual_seed(seed)
        backbone: Backbone = family_of(record).build(record)
    fill(backbone, seed)
    return backbone.eval(), layout(backbone)


def fill(network: nn.Module, seed: int) -> None:
    """Give every parameter and every statistic of `network` its value, in place.

    Matrices and kernels have a variance of 2 / inputs, gains are near 1, the rest near 0, so that the signal
    neither fades nor grows through the blocks.
    """
    # The legacy generator is the one whose stream numpy promises never to change.
    once = torch.from_numpy(np.random.RandomState(seed % 2**32).standard_normal(_N_DRAWN).astype(np.float32))
    drawn = torch.cat([once, once])  # any start is then followed by a whole period
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            is_filled = name in parameters or name.endswith(("running_mean", "running_var"))
            if is_filled and tensor.is_floating_point() and tensor.ndim > 0:
                _fill_tensor(name, tensor, drawn)


def _fill_tensor(name: str, tensor: Tensor, drawn: Tensor) -> None:
    centre, spread = _centre_and_spread(name, tensor)
    start = zlib.crc32(name.encode()) % _N_DRAWN
    values = tensor if tensor.is_contiguous() else torch.empty(tensor.shape)
    for chunk in torch.split(values.view(-1), _N_DRAWN):  # type: ignore[no-untyped-call]
        chunk.copy_(drawn[start : start + len(chunk)]).mul_(spread).add_(centre)
    if name.endswith("running_var"):
        values.clamp_(min=0.5)
    if values is not tensor:
        tensor.copy_(values)


def _centre_and_spread(name: str, tensor: Tensor) -> tuple[float, float]:
    if tensor.ndim == 1:
        is_gain = name.endswith(("weight", "gamma", "gamma_1", "gamma_2", "lambda1", "scale", "running_var"))
        return (1.0 if is_gain else 0.0), 0.1
    return 0.0, _GAIN / tensor[0].numel() ** 0.5 if name.endswith("weight") else 0.2


def layout(network: nn.Module) -> str:
    """Return 12 hex digits of the names and shapes of the tensors of `network`."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in network.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


class _NoInitialisation(TorchFunctionMode):
    """Leaves out the drawing of random weights, which takes longer than anything else and is overwritten."""

    _SKIPPED = frozenset({"normal_", "uniform_", "erfinv_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"})

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in self._SKIPPED and args and isinstance(args[0], Tensor):
            return args[0]
        return function(*args, **(kwargs or {}))
