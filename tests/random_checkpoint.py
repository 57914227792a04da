"""Random weights under which every part of a network matters, and files of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.loading import load_backbone
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.torchvision_guard import ensure_torchvision

# Before anyone imports timm or transformers, which import torchvision.
ensure_torchvision()

_GAINS = ("gamma", "gamma_1", "gamma_2", "lambda1")


def enliven(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every tensor anew: networks start with layer scales of 1e-5, which would hide any mistake in a block."""
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))  # a prime: no two rows repeat
    start = 0
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(_drawn(key, tensor.shape, pool.roll(-start)))
                start = (start + 7919) % len(pool)
    return network.eval()


def _drawn(key: str, shape: torch.Size, pool: Tensor) -> Tensor:
    n_values = shape.numel()
    values = pool.repeat(-(-n_values // len(pool)))[:n_values].view(shape)
    last = key.rpartition(".")[2]
    if last == "running_var":
        return 0.5 + values.abs()
    if last in _GAINS or (last == "weight" and len(shape) == 1):
        return 0.5 + 0.1 * values
    if len(shape) == 4:  # convolutions keep the size of what they get
        return values * (2 / shape[1:].numel()) ** 0.5
    return values * 0.05


def noise_images(n: int, side_px: int, seed: int = 0) -> Tensor:
    """Return normalised images (n, 3, side_px, side_px)."""
    return torch.randn(n, 3, side_px, side_px, generator=torch.Generator().manual_seed(seed))


def saved(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write `state` where `path` says and return `path`."""
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return path


def loaded(record: EncoderSpec, path: Path, **options: Any) -> Backbone:
    """Return the network of `record` with the weights of `path`; `options` change its architecture."""
    changed = record.model_copy(update={"architecture_options": {**record.architecture_options, **options}})
    return load_backbone(changed, weights=path).backbone.eval()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Compare to a share of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))
