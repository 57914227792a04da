"""Position tables resampled the way of DINO's first code, whose steps are not those of timm. Imports torch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# DINO's code asks for a tenth of a row more than it needs, so that rounding never loses one; the
# scale that it samples with is then not the ratio of the two sides, and every position moves a little.
_EXCESS_ROWS = 0.1


def use_offset_positions(network: Any) -> None:
    """Let `network` (a timm ViT with CLS made with ``dynamic_img_size``) resample its table as DINO does."""
    network._pos_embed = partial(_with_positions, network)


def _with_positions(network: Any, patches: Tensor) -> Tensor:
    """Return tokens (batch, 1 + height * width, dim) of `patches` (batch, height, width, dim)."""
    batch, height, width, _ = patches.shape
    tokens = torch.cat([network.cls_token.expand(batch, -1, -1), patches.flatten(1, 2)], dim=1)
    return tokens + resampled_positions(network.pos_embed, height, width).to(tokens.dtype)


def resampled_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Return a table (1, 1 + height * width, dim) for `table` (1, 1 + side * side, dim); CLS comes first.

    Examples:
        >>> resampled_positions(torch.zeros(1, 1 + 14 * 14, 8), 28, 28).shape
        torch.Size([1, 785, 8])
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((height + _EXCESS_ROWS) / side, (width + _EXCESS_ROWS) / side)
    resampled = interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([table[:, :1].float(), resampled.flatten(2).transpose(1, 2)], dim=1)
