"""Maps of a frozen encoder for each section, made in tiles and kept in a file a section. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_dino.errors import ConfigError
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder
from wsi_dino.segmentation.feature_maps import Layer, SliceEncoder
from wsi_dino.segmentation.feature_stack import Box, Crop, window_starts
from wsi_dino.segmentation.prepared import open_tensors, write_tensors
from wsi_dino.segmentation.slice_geometry import SliceGeometry
from wsi_dino.segmentation.views import apply_view

_OVERLAP = 0.25


@dataclass(frozen=True)
class TilePlan:
    """How sections are shown to an encoder.

    Attributes:
        upscale: pixels a voxel.
        tile_px: side of the square the encoder sees.
        layers: of its maps.
        cell_px: coarsest stride.
    """

    upscale: int
    tile_px: int
    layers: tuple[Layer, ...]
    cell_px: int

    def geometry(self, shape: Sequence[int]) -> SliceGeometry:
        """Return where voxels of a section (y, x) lie among cells."""
        height, width = shape
        height_px, width_px = height * self.upscale, width * self.upscale
        return SliceGeometry(height, width, height_px, width_px, self.tile_px, self.cell_px)


def plan_tiles(encoder: SliceEncoder, *, upscale: int, tile_px: int) -> TilePlan:
    """Return the plan for an encoder.

    Raises:
        ConfigError: the tile is no multiple of the encoder's cells.
    """
    if tile_px % encoder.cell_px:
        raise ConfigError(f"--size {tile_px}: {encoder.name} needs a multiple of {encoder.cell_px}.")
    return TilePlan(upscale, tile_px, encoder.layers(), encoder.cell_px)


def encode_section(section: npt.NDArray[np.uint8], encoder: SliceEncoder, plan: TilePlan) -> list[np.ndarray]:
    """Return the maps of one section: for each layer float16 ``(1, channels, rows, cols)``.

    The section is enlarged, continued by its mirror image to whole cells, and shown in tiles that overlap by a
    quarter; each cell comes from the tile whose middle is nearest.

    Args:
        section: uint8 ``(y, x)``.
        encoder: of slices.
        plan: how.
    """
    geometry = plan.geometry(section.shape)
    padded = _padded(_enlarged(section, plan.upscale), plan)
    tile_cells = plan.tile_px // plan.cell_px
    n_cells = [side // plan.cell_px for side in padded.shape]
    starts = [window_starts(n, tile_cells, _OVERLAP) for n in n_cells]
    corners = [(row, col) for row in starts[0] for col in starts[1]]
    maps = _tile_maps(padded, corners, encoder, plan)
    joined = []
    for layer, tiles in zip(plan.layers, maps, strict=True):
        finer = plan.cell_px // layer.stride_px
        whole = np.empty((1, layer.channels, n_cells[0] * finer, n_cells[1] * finer), np.float16)
        for (row, col), tile in zip(corners, tiles, strict=True):
            rows, cols = _nearest(row, starts[0], tile_cells), _nearest(col, starts[1], tile_cells)
            part = tile[:, _scaled(rows, finer, -row), _scaled(cols, finer, -col)]
            whole[0, :, _scaled(rows, finer), _scaled(cols, finer)] = part
        joined.append(np.ascontiguousarray(whole[..., : geometry.rows * finer, : geometry.cols * finer]))
    return joined


def _tile_maps(
    padded: npt.NDArray[np.uint8], corners: list[tuple[int, int]], encoder: SliceEncoder, plan: TilePlan
) -> list[np.ndarray]:
    network = encoder.at(plan.tile_px)
    found: list[list[np.ndarray]] = []
    for start in range(0, len(corners), network.batch_size):
        part = corners[start : start + network.batch_size]
        tiles = np.stack([_tile(padded, row, col, plan) for row, col in part])
        shown = torch.from_numpy(np.repeat(tiles[..., None], 3, -1))
        found.append([item.numpy().astype(np.float16) for item in network.feature_maps(shown, encoder.layer_numbers)])
    return [np.concatenate(of_layer) for of_layer in zip(*found, strict=True)]


def _tile(padded: npt.NDArray[np.uint8], row: int, col: int, plan: TilePlan) -> npt.NDArray[np.uint8]:
    y, x = row * plan.cell_px, col * plan.cell_px
    return padded[y : y + plan.tile_px, x : x + plan.tile_px]


def _enlarged(section: npt.NDArray[np.uint8], upscale: int) -> npt.NDArray[np.uint8]:
    if upscale == 1:
        return section
    moved = torch.from_numpy(section)[None, None].float()
    grown = torch.nn.functional.interpolate(moved, scale_factor=upscale, mode="bicubic")
    return grown[0, 0].round_().clamp_(0, 255).to(torch.uint8).numpy()


def _padded(section: npt.NDArray[np.uint8], plan: TilePlan) -> npt.NDArray[np.uint8]:
    sides = [max(plan.tile_px, -(-side // plan.cell_px) * plan.cell_px) for side in section.shape]
    return np.pad(section, [(0, want - have) for want, have in zip(sides, section.shape, strict=True)], "symmetric")


def _nearest(start: int, starts: list[int], size: int) -> tuple[int, int]:
    """Return the cells for which the tile at `start` is the one with the nearest middle."""
    place = starts.index(start)
    first = 0 if place == 0 else (starts[place - 1] + size + start) // 2
    last = start + size if place == len(starts) - 1 else (start + size + starts[place + 1]) // 2
    return first, last


def _scaled(cells: tuple[int, int], finer: int, shift: int = 0) -> slice:
    return slice((cells[0] + shift) * finer, (cells[1] + shift) * finer)


@dataclass(frozen=True)
class SectionMaps:
    """The maps of all sections of a volume in one view; looks like a `FeatureStack`.

    Attributes:
        folder: of ``0000.safetensors`` and so on, with ``map_0``, ``map_1``, ...
        n_slices: of the volume.
        geometry: of a section in the view.
        layers: of the maps.
    """

    folder: Path
    n_slices: int
    geometry: SliceGeometry
    layers: tuple[Layer, ...]

    @property
    def whole(self) -> Box:
        """The box of everything."""
        return Box((0, self.n_slices), (0, self.geometry.rows), (0, self.geometry.cols))

    def voxels(self, box: Box) -> tuple[slice, slice, slice]:
        """Return the voxels whose middle lies in a box."""
        rows = np.searchsorted(self.geometry.row_positions(), box.rows)
        cols = np.searchsorted(self.geometry.col_positions(), box.cols)
        return slice(*box.slices), slice(int(rows[0]), int(rows[1])), slice(int(cols[0]), int(cols[1]))

    def crop(self, box: Box) -> Crop:
        """Read a part of the maps."""
        voxels = self.voxels(box)
        rows = self.geometry.row_positions()[voxels[1]] - box.rows[0]
        cols = self.geometry.col_positions()[voxels[2]] - box.cols[0]
        return Crop(
            tuple(self._part(i, layer, box) for i, layer in enumerate(self.layers)),
            torch.from_numpy(rows / (box.rows[1] - box.rows[0])),
            torch.from_numpy(cols / (box.cols[1] - box.cols[0])),
            voxels,
        )

    def _part(self, number: int, layer: Layer, box: Box) -> Tensor:
        finer = self.geometry.cell_px // layer.stride_px
        rows, cols = _scaled(box.rows, finer), _scaled(box.cols, finer)
        sections = []
        for z in range(*box.slices):
            with open_tensors(section_path(self.folder, z)) as file:
                sections.append(np.asarray(file.get_slice(f"map_{number}")[:, :, rows, cols]))
        return torch.from_numpy(np.concatenate(sections)).float().transpose(0, 1)[None]


def section_path(folder: Path, z: int) -> Path:
    """Path of the maps of one section."""
    return folder / f"{z:04d}.safetensors"


def encode_volume(
    run: RunFolder,
    stage: str,
    folder: Path,
    voxels: npt.NDArray[np.uint8],
    view: str,
    encoder: SliceEncoder,
    plan: TilePlan,
    *,
    source: str,
    advance: Callable[[], None],
) -> SectionMaps:
    """Encode the sections that are not there yet, each kept when it is done.

    Args:
        run: that keeps the rows.
        stage: name of the rows, of this volume, encoder and view alone.
        folder: of the maps of this volume and view.
        voxels: uint8 ``(z, y, x)``.
        view: of `views.VIEWS`.
        encoder: of slices.
        plan: how.
        source: fingerprint of the volume and the encoder.
        advance: called after each section.
    """
    seen = apply_view(voxels, view)
    identity = fingerprint(source, view, plan.upscale, plan.tile_px)
    items = [Item(f"{z:04d}", identity) for z in range(len(seen))]
    is_intact = lambda item, row: (folder / f"{item.key}.safetensors").is_file()  # noqa: E731
    queue = ItemQueue(run, stage, items, is_intact, is_divided=True)
    while (claimed := queue.take()) is not None:
        try:
            z = int(claimed.item.key)
            maps = encode_section(seen[z], encoder, plan)
            write_tensors(section_path(folder, z), {f"map_{i}": item for i, item in enumerate(maps)}, {"view": view})
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, {"status": "done"})
        advance()
    return SectionMaps(folder, len(seen), plan.geometry(seen.shape[1:]), plan.layers)
