"""Stacked maps of a volume on disk, and crops of them with the voxels they answer for. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_dino.segmentation.feature_maps import Layer, Meeting, SliceEncoder, pictures_of
from wsi_dino.segmentation.prepared import open_tensors, write_tensors
from wsi_dino.segmentation.slice_geometry import SliceGeometry
from wsi_dino.segmentation.views import apply_view


@dataclass(frozen=True)
class Box:
    """A part of a stack: slices, and cells of the coarsest map; stops are exclusive."""

    slices: tuple[int, int]
    rows: tuple[int, int]
    cols: tuple[int, int]


@dataclass(frozen=True)
class Crop:
    """What a decoder sees of a volume, and where the voxels lie that it answers for.

    Attributes:
        maps: for each layer float32 ``(1, channels, n_slices, rows, cols)``.
        row_positions, col_positions: float32; centres of voxels in parts of the crop, 0 at its upper or left edge and
            1 at the other.
        voxels: the box of voxels (z, y, x) that lie in the crop.
    """

    maps: tuple[Tensor, ...]
    row_positions: Tensor
    col_positions: Tensor
    voxels: tuple[slice, slice, slice]


@dataclass(frozen=True)
class FeatureStack:
    """The stacked maps of one volume in one view.

    Attributes:
        path: ``.safetensors`` with ``map_0``, ``map_1``, ... float16 ``(z, channels, rows, cols)``.
        n_slices: of the volume.
        geometry: of the view's slices.
        layers: with channels as stored.
    """

    path: Path
    n_slices: int
    geometry: SliceGeometry
    layers: tuple[Layer, ...]

    @property
    def whole(self) -> Box:
        """The box of everything."""
        return Box((0, self.n_slices), (0, self.geometry.rows), (0, self.geometry.cols))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        return self.n_slices, self.geometry.height, self.geometry.width

    def crop(self, box: Box) -> Crop:
        """Read a part of the stack; no more of the file is read than that."""
        with open_tensors(self.path) as file:
            maps = tuple(self._part(file.get_slice(f"map_{i}"), layer, box) for i, layer in enumerate(self.layers))
        rows, rows_at = _inside(self.geometry.row_positions(), box.rows)
        cols, cols_at = _inside(self.geometry.col_positions(), box.cols)
        return Crop(maps, rows_at, cols_at, (slice(*box.slices), rows, cols))

    def _part(self, stored: object, layer: Layer, box: Box) -> Tensor:
        finer = self.geometry.cell_px // layer.stride_px
        (z0, z1), (r0, r1), (c0, c1) = box.slices, box.rows, box.cols
        part = stored[z0:z1, :, r0 * finer : r1 * finer, c0 * finer : c1 * finer]  # type: ignore[index]
        return torch.from_numpy(np.ascontiguousarray(part)).float().transpose(0, 1)[None]


def _inside(positions: npt.NDArray[np.float32], cells: tuple[int, int]) -> tuple[slice, Tensor]:
    start, stop = np.searchsorted(positions, cells)
    n_cells = cells[1] - cells[0]
    return slice(int(start), int(stop)), torch.from_numpy((positions[start:stop] - cells[0]) / n_cells)


def write_stack(
    path: Path, grey: npt.NDArray[np.uint8], view: str, encoder: SliceEncoder, meeting: Meeting, geometry: SliceGeometry
) -> list[list[int]]:
    """Encode a volume in one view and write its maps; return their shapes.

    Args:
        path: to write.
        grey: uint8 ``(channels, z, y, x)``, as is.
        view: of `views.VIEWS`.
        encoder: of slices.
        meeting: how channels meet.
        geometry: of the view's slices.
    """
    stacks = [encoder.encode(picture, geometry) for picture in pictures_of(apply_view(grey, view), meeting)]
    joined = stacks[0] if len(stacks) == 1 else [np.concatenate(maps, axis=1) for maps in zip(*stacks, strict=True)]
    write_tensors(path, {f"map_{i}": stack for i, stack in enumerate(joined)}, {"view": view})
    return [list(stack.shape) for stack in joined]


def joined_layers(layers: Sequence[Layer], n_channels: int, meeting: Meeting) -> tuple[Layer, ...]:
    """Return the layers as stored: with ``late`` each has the channels of all image channels."""
    times = n_channels if meeting == "late" else 1
    return tuple(Layer(layer.channels * times, layer.stride_px) for layer in layers)


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin so that they cover `length` and overlap by at least `overlap`.

    Examples:
        >>> window_starts(10, 4, 0.5), window_starts(3, 4, 0.5)
        ([0, 2, 4, 6], [0])
    """
    if length <= window:
        return [0]
    n_windows = int(np.ceil((length - window) / max(1, window * (1 - overlap)))) + 1
    return [round(i * (length - window) / (n_windows - 1)) for i in range(n_windows)]


def window_boxes(whole: Box, n_slices: int, n_cells: int, overlap: float) -> list[Box]:
    """Return boxes of at most `n_slices` x `n_cells` x `n_cells` that cover a stack."""
    sides = [(whole.slices[1], n_slices), (whole.rows[1], n_cells), (whole.cols[1], n_cells)]
    starts = [window_starts(length, size, overlap) for length, size in sides]
    sizes = [min(length, size) for length, size in sides]
    return [
        Box((z, z + sizes[0]), (r, r + sizes[1]), (c, c + sizes[2]))
        for z in starts[0] for r in starts[1] for c in starts[2]
    ]  # fmt: skip
