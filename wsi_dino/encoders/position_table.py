"""Vision transformers whose position table is stretched without smoothing. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat
from torch.nn.functional import interpolate

from wsi_dino.encoders.backbone import TimmVit


class PlainTableVit(TimmVit):
    """A ViT of timm that resamples its position table by plain bicubic interpolation.

    So do Meta's DINOv2 without registers, MAE and the transformers library; timm smooths before it
    shrinks, and so gives other vectors at 224 px where a table was made for 518 px, as DINOv2's are.
    """

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return (batch, n_tokens, dim) after the last norm, prefix tokens first."""
        tokens, _ = self._start(pixels)
        for block in self.model.blocks:
            tokens = block(tokens)
        normed: Tensor = self.model.norm(tokens)
        return normed

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the patch tokens after each of `layers` (block numbers from 0), before the last norm."""
        tokens, (height, width) = self._start(pixels)
        taken = {}
        for number, block in enumerate(self.model.blocks[: max(layers) + 1]):
            tokens = block(tokens)
            if number in layers:
                patches = tokens[:, self.n_prefix_tokens :]
                taken[number] = patches.transpose(1, 2).reshape(len(tokens), -1, height, width)
        return [taken[layer] for layer in layers]

    def _start(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens that enter the first block, and the grid of patches."""
        patches = self.model.patch_embed(pixels)
        grid = (patches.shape[1], patches.shape[2])
        tokens = cat([self.model.cls_token.expand(len(patches), -1, -1), patches.flatten(1, 2)], dim=1)
        return self.model.norm_pre(tokens + resampled_table(self.model.pos_embed, grid)), grid


def resampled_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the position table for another grid, in the number format of `table`.

    Args:
        table: (1, 1 + side * side, dim), the first row that of the CLS token.
        grid: rows and columns of patches.

    Returns:
        (1, 1 + rows * columns, dim); `table` itself where the grid is its own.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    square = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    stretched = interpolate(square.float(), size=grid, mode="bicubic", align_corners=False).to(table.dtype)
    return cat([table[:, :1], stretched.flatten(2).transpose(1, 2)], dim=1)
