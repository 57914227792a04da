"""The tiles of one slide: where each lies, how it is read, and the HDF5 file that says so."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi_dino.errors import TileGridError
from wsi_dino.provenance import write_hdf5_atomically

_FORMAT = "wsi_dino.tiles/1"
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one slide.

    Attributes:
        slide_id: text id of the slide.
        slide_fingerprint: content hash of the slide file (`provenance.slide_fingerprint`).
        xy: int64 ``(n_tiles, 2)``, top-left x, y in level-0 px.
        tissue_fraction: float32 ``(n_tiles,)`` in 0..1.
        tile_px: side of the square tile that an encoder gets, after resampling.
        tile_wh_level0: width and height of a tile's footprint in level-0 px.
        stride_xy_level0: step of the grid in level-0 px.
        level: pyramid level that is read.
        read_wh: width and height in px of that level that are read for one tile.
        level_downsample_xy: per-axis downsample of that level.
        slide_wh_level0: size of the slide.
        mpp_xy: resolved um/px at level 0 as (x, y), or None when unknown (native or level tiling).
        mpp_source: where that came from, e.g. ``"openslide.mpp-x"``, ``"mpp table"``, ``"assumed"``, ``"unknown"``.
        mpp_asked: what was asked for: um/px of the tile, ``"native"`` or ``"level N"``.
        mpp_found_xy: um/px of a tile as an encoder gets it, or None when unknown.
        spec: the whole request (tissue and tiling), JSON-able.
        fingerprint: changes with the request or the slide.
    """

    slide_id: str
    slide_fingerprint: str
    xy: np.ndarray
    tissue_fraction: np.ndarray
    tile_px: int
    tile_wh_level0: tuple[int, int]
    stride_xy_level0: tuple[int, int]
    level: int
    read_wh: tuple[int, int]
    level_downsample_xy: tuple[float, float]
    slide_wh_level0: tuple[int, int]
    mpp_xy: tuple[float, float] | None
    mpp_source: str
    mpp_asked: float | str
    mpp_found_xy: tuple[float, float] | None
    spec: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def view(self) -> str:
        """What a tile shows, in words: ``"224 px at 0.5 um/px"``, ``"224 px at native"``, ``"256 px at level 1"``."""
        unit = "" if isinstance(self.mpp_asked, str) else " um/px"
        return f"{self.tile_px} px at {self.mpp_asked}{unit}"

    @property
    def coords_attrs(self) -> dict[str, Any]:
        """Attributes for a ``coords`` dataset, under the names that CLAM's and TRIDENT's readers look for.

        Both are told of the region that is really read (``patch_size`` px at ``patch_level``), so that
        their own extractors see the same field of view; `tile_px` is what we resample it to.
        """
        attrs: dict[str, Any] = {
            "patch_size": self.read_wh[0],
            "patch_level": self.level,
            "downsample": list(self.level_downsample_xy),
            "level_dim": self._level_wh,
            "downsampled_level_dim": self._level_wh,
            "name": self.slide_id,
            "save_path": "tiles",
            "savetodir": "tiles",
            "patch_size_level0": self.tile_wh_level0[0],
            "overlap": max(0, self.read_wh[0] - round(self.stride_xy_level0[0] / self.level_downsample_xy[0])),
            "level0_width": self.slide_wh_level0[0],
            "level0_height": self.slide_wh_level0[1],
            "tile_px": self.tile_px,
        }
        if self.mpp_xy is not None:
            magnification = nominal_magnification(self.mpp_xy[0])
            attrs["level0_magnification"] = magnification
            attrs["target_magnification"] = magnification / self.level_downsample_xy[0]
        return attrs

    @property
    def _level_wh(self) -> list[int]:
        return [round(s / d) for s, d in zip(self.slide_wh_level0, self.level_downsample_xy, strict=True)]

    def description(self) -> dict[str, Any]:
        """Everything but the arrays, JSON-able; goes into the tile file and into every feature file."""
        return {
            "slide_id": self.slide_id,
            "slide_fingerprint": self.slide_fingerprint,
            "tile_px": self.tile_px,
            "tile_wh_level0": list(self.tile_wh_level0),
            "stride_xy_level0": list(self.stride_xy_level0),
            "level": self.level,
            "read_wh": list(self.read_wh),
            "level_downsample_xy": list(self.level_downsample_xy),
            "slide_wh_level0": list(self.slide_wh_level0),
            "mpp_xy": None if self.mpp_xy is None else list(self.mpp_xy),
            "mpp_source": self.mpp_source,
            "mpp_asked": self.mpp_asked,
            "mpp_found_xy": None if self.mpp_found_xy is None else list(self.mpp_found_xy),
            "spec": self.spec,
            "fingerprint": self.fingerprint,
        }


def nominal_magnification(mpp: float) -> float:
    """Return the objective that people name for `mpp` um/px: 10 / mpp, rounded to a usual one when near it.

    Examples:
        >>> nominal_magnification(0.2525), nominal_magnification(0.499), nominal_magnification(0.8)
        (40.0, 20.0, 12.5)
    """
    exact = 10.0 / mpp
    for usual in (5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0):
        if abs(exact - usual) / usual < 0.15:
            return usual
    return exact


def write_tile_grid(path: Path, grid: TileGrid) -> None:
    """Write `grid` atomically; equal grids give equal bytes.

    Datasets ``coords`` int64 (n, 2) and ``tissue_fraction`` float32 (n,); root attributes ``format``,
    ``description`` (JSON), ``fingerprint`` and its scalars; attributes of ``coords``: `TileGrid.coords_attrs`.
    """
    description = grid.description()
    with write_hdf5_atomically(path) as h5:
        _create(h5, "coords", np.asarray(grid.xy, np.int64).reshape(-1, 2)).attrs.update(grid.coords_attrs)
        _create(h5, "tissue_fraction", np.asarray(grid.tissue_fraction, np.float32))
        h5.attrs["format"] = _FORMAT
        h5.attrs["description"] = json.dumps(description, sort_keys=True)
        for key, value in description.items():
            if isinstance(value, str | int | float):
                h5.attrs[key] = value


def _create(h5: h5py.File, name: str, array: np.ndarray) -> h5py.Dataset:
    if len(array) == 0:
        return h5.create_dataset(name, data=array)
    chunks = (min(_CHUNK_ROWS, len(array)), *array.shape[1:])
    return h5.create_dataset(name, data=array, chunks=chunks, fletcher32=True)


def read_tile_grid(path: Path) -> TileGrid:
    """Read a tile file.

    Raises:
        TileGridError: the file is missing, truncated or of another layout.
    """
    advice = "Run `wsi-dino tile` again: it redoes what is missing or broken."
    try:
        with h5py.File(path, "r") as h5:
            description = json.loads(h5.attrs["description"])
            xy, tissue_fraction = h5["coords"][()], h5["tissue_fraction"][()]
    except FileNotFoundError as error:
        raise TileGridError(f"Reading tiles {path}: there is no such file. {advice}") from error
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise TileGridError(f"Reading tiles {path}: broken or not a tile file ({error}). {advice}") from error
    pairs: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in description.items()
    }
    return TileGrid(xy=xy, tissue_fraction=tissue_fraction, **pairs)
