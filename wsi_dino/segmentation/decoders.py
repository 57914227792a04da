"""From stacked maps of a frozen encoder to voxels: a linear head, a light 3D decoder, a UNETR. Imports torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_dino.segmentation.feature_maps import Layer

DecoderName = Literal["conv3d", "linear", "unetr"]
DECODERS: tuple[DecoderName, ...] = ("conv3d", "linear", "unetr")
_WIDTHS = (64, 32, 16)
_UNETR_WIDTH = 64


class StackDecoder(nn.Module):
    """What all decoders share: maps are standardised, cells become voxels by linear interpolation.

    The in-plane axes of a stack are coarser than the volume, the axis across slices is not: decoders climb in
    plane only, and slices stay as scanned.

    Args:
        layers: of the stack.
        n_outputs: channels of the answer, e.g. classes with background.
    """

    def __init__(self, layers: Sequence[Layer], n_outputs: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.n_outputs = n_outputs
        for i, layer in enumerate(self.layers):
            self.register_buffer(f"mean_{i}", torch.zeros(layer.channels))
            self.register_buffer(f"std_{i}", torch.ones(layer.channels))

    def set_statistics(self, means: Sequence[Tensor], stds: Sequence[Tensor]) -> None:
        """Take mean and standard deviation of each channel of each layer, as training volumes have them."""
        for i, (mean, std) in enumerate(zip(means, stds, strict=True)):
            self.get_buffer(f"mean_{i}").copy_(mean)
            self.get_buffer(f"std_{i}").copy_(std.clamp_min(1e-6))

    def standardised(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps with mean 0 and deviation 1."""
        shape = (1, -1, 1, 1, 1)
        return [
            (item - self.get_buffer(f"mean_{i}").view(shape)) / self.get_buffer(f"std_{i}").view(shape)
            for i, item in enumerate(maps)
        ]

    def forward(self, maps: Sequence[Tensor], rows: Tensor, cols: Tensor, grey: Tensor | None = None) -> Tensor:
        """Return the answer for each voxel.

        Args:
            maps: for each layer ``(1, channels, n_slices, rows, cols)``.
            rows: where rows of voxels lie in the crop, 0..1.
            cols: where columns of voxels lie.
            grey: ``(1, image channels, n_slices, len(rows), len(cols))``, 0..1; for decoders with an image skip.

        Returns:
            ``(1, n_outputs, n_slices, len(rows), len(cols))``.
        """
        raise NotImplementedError


def at_voxels(lattice: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Sample ``(1, channels, n_slices, height, width)`` at positions 0..1 by bilinear interpolation, in float32.

    Two products with sparse matrices, whose gradients are products again: several times faster on a CPU than
    `grid_sample`, whose gradient is not.
    """
    with torch.autocast(lattice.device.type, enabled=False):
        by_rows = _between(rows, lattice.shape[3]) @ lattice.float()
        return by_rows @ _between(cols, lattice.shape[4]).T


def _between(positions: Tensor, n_cells: int) -> Tensor:
    """Return ``(len(positions), n_cells)``: what each cell's centre counts at each position; borders are repeated."""
    at = (positions.float() * n_cells - 0.5).clamp(0, n_cells - 1)
    centres = torch.arange(n_cells, device=at.device)
    return (1 - (at[:, None] - centres).abs()).clamp_min(0)


class LinearDecoder(StackDecoder):
    """One linear map from the stacked channels of a cell to classes: what the features themselves hold."""

    def __init__(self, layers: Sequence[Layer], n_outputs: int) -> None:
        super().__init__(layers, n_outputs)
        self.heads = nn.ModuleList(nn.Conv3d(layer.channels, n_outputs, 1) for layer in layers)

    def forward(self, maps: Sequence[Tensor], rows: Tensor, cols: Tensor, grey: Tensor | None = None) -> Tensor:
        """As `StackDecoder.forward`; the sum of the layers' answers, each interpolated."""
        answers = (head(item) for head, item in zip(self.heads, self.standardised(maps), strict=True))
        return torch.stack([at_voxels(answer, rows, cols) for answer in answers]).sum(0)


def _block(n_in: int, n_out: int, *, is_light: bool = False) -> nn.Sequential:
    """Return two convolutions; of a light block the first, which takes most channels, looks in plane only."""
    depth = 1 if is_light else 3
    return nn.Sequential(
        nn.Conv3d(n_in, n_out, (depth, 3, 3), padding=(depth // 2, 1, 1), bias=False),
        nn.InstanceNorm3d(n_out, affine=True), nn.GELU(),
        nn.Conv3d(n_out, n_out, 3, padding=1, bias=False), nn.InstanceNorm3d(n_out, affine=True), nn.GELU(),
    )  # fmt: skip


def _up(n_in: int, n_out: int) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(n_in, n_out, (1, 2, 2), stride=(1, 2, 2))


class _VoxelHead(nn.Module):
    """The last step, on the voxel grid; with the image beside the features when asked.

    Args:
        width: channels that come.
        n_outputs: channels of the answer.
        image_channels: of the image; 0 for none.
        parts: answers a side that each cell gives, as sub-pixels (Shi et al. 2016, arXiv 1609.05158).
    """

    def __init__(self, width: int, n_outputs: int, image_channels: int, parts: int = 1) -> None:
        super().__init__()
        self.image_channels, self.parts = image_channels, parts
        n_in = width + image_channels
        self.block = _block(n_in, width) if image_channels else nn.Identity()
        self.last = nn.Conv3d(width, n_outputs * parts**2, 1)
        if parts > 1:  # all answers of a cell begin alike: no checkerboard to be unlearned (Aitken et al. 2017)
            for weights in self.last.parameters():
                weights.data = weights.data[:: parts**2].repeat_interleave(parts**2, 0)

    def forward(self, lattice: Tensor, rows: Tensor, cols: Tensor, grey: Tensor | None) -> Tensor:
        if not self.image_channels:  # a linear map of channels and one of places: the fewer channels go first
            return at_voxels(_sub_pixels(self.last(lattice), self.parts), rows, cols)
        assert grey is not None
        voxels = at_voxels(lattice, rows, cols)
        answer: Tensor = self.last(self.block(torch.cat([voxels, grey.to(voxels) * 2 - 1], 1)))
        return answer


def _sub_pixels(lattice: Tensor, parts: int) -> Tensor:
    """Turn ``(1, channels * parts ** 2, z, y, x)`` to ``(1, channels, z, y * parts, x * parts)``."""
    return functional.pixel_shuffle(lattice[0].transpose(0, 1), parts).transpose(0, 1)[None]


class ConvDecoder(StackDecoder):
    """The paper's kind of decoder: stacked maps, 3D convolutions, skip connections, steps of twice the resolution.

    All layers of the coarsest stride are joined at the bottom. Each step up takes the maps of its own stride where
    the encoder has some (convolutional networks), else one more shallow layer, enlarged.

    A light one costs half: its blocks look across slices once, not twice, and the last step of two is made by
    sub-pixels where the encoder has no maps of that stride and the decoder is not given the image.

    Args:
        layers: of the stack.
        n_outputs: channels of the answer.
        n_up: steps of two from the coarsest maps.
        image_channels: of the image for the skip at full resolution; 0 for none.
        is_light: see above.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        n_outputs: int,
        n_up: int,
        image_channels: int = 0,
        *,
        is_light: bool = False,
    ) -> None:
        super().__init__(layers, n_outputs)
        coarsest = max(layer.stride_px for layer in layers)
        in_parts = is_light and not image_channels and not _of_stride(layers, coarsest / 2**n_up)
        n_up -= int(in_parts)
        self.bottom_layers = [i for i, layer in enumerate(layers) if layer.stride_px == coarsest]
        self.skip_layers = [_skips(layers, coarsest, step) for step in range(1, n_up + 1)]
        widths = [_WIDTHS[min(step, len(_WIDTHS) - 1)] for step in range(n_up + 1)]
        n_bottom = sum(layers[i].channels for i in self.bottom_layers)
        self.entry = nn.Conv3d(n_bottom, widths[0], 1)
        self.bottom = _block(widths[0], widths[0], is_light=is_light)
        self.ups = nn.ModuleList(_up(a, b) for a, b in itertools.pairwise(widths))
        self.skips = nn.ModuleList(
            nn.ModuleList(nn.Conv3d(layers[i].channels, width, 1) for i in taken)
            for taken, width in zip(self.skip_layers, widths[1:], strict=True)
        )
        self.blocks = nn.ModuleList(
            _block(2 * width if taken else width, width, is_light=is_light)
            for taken, width in zip(self.skip_layers, widths[1:], strict=True)
        )
        self.dropout = nn.Dropout3d(0.1)
        self.head = _VoxelHead(widths[-1], n_outputs, image_channels, parts=2 if in_parts else 1)

    def forward(self, maps: Sequence[Tensor], rows: Tensor, cols: Tensor, grey: Tensor | None = None) -> Tensor:
        """As `StackDecoder.forward`."""
        ready = self.standardised(maps)
        lattice = self.bottom(self.entry(self.dropout(torch.cat([ready[i] for i in self.bottom_layers], 1))))
        for step, (up, block) in enumerate(zip(self.ups, self.blocks, strict=True)):
            taken, skips = self.skip_layers[step], self._skips_of(step)
            lattice = up(lattice)
            if taken:
                joined = [_grown(skips[n](ready[i]), lattice) for n, i in enumerate(taken)]
                lattice = torch.cat([lattice, torch.stack(joined).sum(0)], 1)
            lattice = block(lattice)
        answer: Tensor = self.head(lattice, rows, cols, grey)
        return answer

    def _skips_of(self, step: int) -> nn.ModuleList:
        skips = self.skips[step]
        assert isinstance(skips, nn.ModuleList)
        return skips


def _skips(layers: Sequence[Layer], coarsest: int, step: int) -> list[int]:
    own = _of_stride(layers, coarsest / 2**step)
    if own:
        return own
    if any(layer.stride_px != coarsest for layer in layers):
        return []
    return [len(layers) - 1 - step] if len(layers) > step else []


def _of_stride(layers: Sequence[Layer], stride_px: float) -> list[int]:
    return [i for i, layer in enumerate(layers) if layer.stride_px == stride_px]


def _grown(skip: Tensor, like: Tensor) -> Tensor:
    if skip.shape[2:] == like.shape[2:]:
        return skip
    return functional.interpolate(skip, size=like.shape[2:], mode="nearest")


class UnetrDecoder(StackDecoder):
    """UNETR's decoder on stacked maps: towers of transposed convolutions for the shallower layers, joined on the way.

    After Hatamizadeh et al. 2022 (arXiv 2103.10504), in plane only.

    Args:
        layers: of the stack, from shallow to deep.
        n_outputs: channels of the answer.
        n_up: steps of two from the coarsest maps.
        image_channels: of the image, UNETR's own skip at full resolution; 0 leaves it out.
    """

    def __init__(self, layers: Sequence[Layer], n_outputs: int, n_up: int, image_channels: int = 0) -> None:
        super().__init__(layers, n_outputs)
        widths = [max(_UNETR_WIDTH >> step, 8) for step in range(n_up + 1)]
        coarsest = max(layer.stride_px for layer in layers)
        self.entry = nn.Conv3d(layers[-1].channels, widths[0], 1)
        self.entry_ups = round(math.log2(coarsest / layers[-1].stride_px))
        shallow = list(range(len(layers) - 1))[::-1][:n_up]
        self.tower_layers = [shallow[min(step, len(shallow) - 1)] if shallow else 0 for step in range(n_up)]
        self.towers = nn.ModuleList(
            _tower(layers[i], coarsest, step + 1, widths) for step, i in enumerate(self.tower_layers)
        )
        self.ups = nn.ModuleList(_up(a, b) for a, b in itertools.pairwise(widths))
        self.blocks = nn.ModuleList(_block(2 * width, width) for width in widths[1:])
        self.head = _VoxelHead(widths[-1], n_outputs, image_channels)

    def forward(self, maps: Sequence[Tensor], rows: Tensor, cols: Tensor, grey: Tensor | None = None) -> Tensor:
        """As `StackDecoder.forward`."""
        ready = self.standardised(maps)
        lattice = functional.avg_pool3d(self.entry(ready[-1]), (1, 2**self.entry_ups, 2**self.entry_ups))
        for up, i, tower, block in zip(self.ups, self.tower_layers, self.towers, self.blocks, strict=True):
            lattice = up(lattice)
            lattice = block(torch.cat([lattice, _grown(tower(ready[i]), lattice)], 1))
        answer: Tensor = self.head(lattice, rows, cols, grey)
        return answer


def _tower(layer: Layer, coarsest: int, step: int, widths: Sequence[int]) -> nn.Sequential:
    """Return what brings a layer to the resolution of a step: as many doublings as it is coarser."""
    n_doublings = max(0, step - round(math.log2(coarsest / layer.stride_px)))
    first = step - n_doublings
    parts: list[nn.Module] = [nn.Conv3d(layer.channels, widths[first], 1)]
    for at in range(first, step):
        parts += [_up(widths[at], widths[at + 1]), nn.InstanceNorm3d(widths[at + 1], affine=True), nn.GELU()]
    return nn.Sequential(*parts)


def make_decoder(
    name: DecoderName,
    layers: Sequence[Layer],
    n_outputs: int,
    n_up: int,
    image_channels: int = 0,
    *,
    is_light: bool = False,
) -> StackDecoder:
    """Return a decoder with fresh weights; arguments as for `ConvDecoder`."""
    if name == "linear":
        return LinearDecoder(layers, n_outputs)
    if name == "unetr":
        return UnetrDecoder(layers, n_outputs, n_up, image_channels)
    return ConvDecoder(layers, n_outputs, n_up, image_channels, is_light=is_light)


def steps_up(patch_mm: float, patch_px: int, coarsest_px: int, spacing_mm: float) -> int:
    """Return how many steps of two bring the coarsest maps nearest to the voxels' own resolution.

    Examples:
        >>> steps_up(3.5, 16, 16, 1.0), steps_up(3.5, 16, 32, 1.0), steps_up(14.3, 16, 16, 0.78)
        (2, 3, 4)
    """
    return min(6, max(1, round(math.log2(patch_mm * coarsest_px / patch_px / spacing_mm))))
