"""Slides that OpenSlide reads: the reference for all other readers of the same file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide

from wsi_dino.errors import SlideError
from wsi_dino.pathology.slide import Slide, composite_on_white, plausible_mpp

_UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}
_CACHE_ROWS = 4
_CACHE_BYTES = (64 * 2**20, 512 * 2**20)


def detected_vendor(file: Path) -> str | None:
    """Return OpenSlide's name for the format of `file`, or None when it would refuse it."""
    try:
        return openslide.OpenSlide.detect_format(file)
    except (OSError, openslide.OpenSlideError):
        return None


def tile_row_cache_bytes(width: int, tile_wh: tuple[int, int], bytes_per_px: int) -> int:
    """Return how many bytes hold four rows of decoded tiles of a level that is `width` px wide, within 64..512 MiB.

    Regions read in (y, x) order touch up to three rows of stored tiles and come back to the last of them,
    so that with this much each stored tile is decoded once.
    """
    row = math.ceil(width / tile_wh[0]) * tile_wh[0] * tile_wh[1] * bytes_per_px
    low, high = _CACHE_BYTES
    return min(max(low, _CACHE_ROWS * row), high)


class OpenSlideSlide(Slide):
    """A slide read through OpenSlide 4.

    OpenSlide takes positions in whole level-0 px and divides them by one mean downsample a level. On a
    coarser level whose downsample is not whole, `read_level` therefore asks for the nearest position it
    can name: what comes may be blended with the next px by up to 1 / (2 x downsample) px.

    Raises:
        SlideError: OpenSlide cannot open the file.
    """

    backend = "openslide"

    def __init__(self, file: Path, slide_id: str, *, path: Path | None = None) -> None:
        self._handle = open_handle(file)
        dimensions = tuple((int(w), int(h)) for w, h in self._handle.level_dimensions)
        mpp, source = mpp_of_properties(self._handle.properties)
        super().__init__(slide_id, path or file, dimensions, mpp, source)
        self._handle.set_cache(openslide.OpenSlideCache(self._cache_bytes()))

    def _cache_bytes(self) -> int:
        properties = self._handle.properties
        tile_wh = tuple(int(properties.get(f"openslide.level[0].tile-{side}", 512)) for side in ("width", "height"))
        return tile_row_cache_bytes(self.level_dimensions[0][0], (tile_wh[0], tile_wh[1]), 4)

    def read_level(self, xy_level: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
        return composite_on_white(self._read_rgba(xy_level, level, wh))

    def read_level_rgb_raw(self, level: int) -> np.ndarray:
        self._check_level(level)
        return np.ascontiguousarray(self._read_rgba((0, 0), level, self.level_dimensions[level])[..., :3])

    def _read_rgba(self, xy_level: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
        self._check_level(level)
        mean_downsample = self._handle.level_downsamples[level]
        xy_level0 = (round(xy_level[0] * mean_downsample), round(xy_level[1] * mean_downsample))
        try:
            return np.asarray(self._handle.read_region(xy_level0, level, wh))
        except (openslide.OpenSlideError, OSError, ValueError) as error:
            raise SlideError(
                f"Reading {self.path}: {wh[0]}x{wh[1]} px at {xy_level} of level {level} cannot be decoded "
                f"({error}). The file is damaged or truncated: copy it again."
            ) from error

    def best_level_for_downsample(self, downsample: float) -> int:
        return int(self._handle.get_best_level_for_downsample(downsample))

    def close(self) -> None:
        self._handle.close()


def open_handle(file: Path) -> openslide.OpenSlide:
    """Open `file` with OpenSlide.

    Raises:
        SlideError: it is no slide, or a damaged one.
    """
    try:
        return openslide.OpenSlide(file)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(f"Opening {file}: not a format that OpenSlide reads, or its header is damaged.") from error
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(f"Opening {file}: damaged or truncated ({error}). Copy it again.") from error


def mpp_of_properties(properties: Mapping[str, str]) -> tuple[tuple[float, float] | None, str]:
    """Return um/px at level 0 and its source, or None and why, from OpenSlide's properties.

    Looked for in this order: ``openslide.mpp-x/y``; ``PhysicalSizeX/Y`` of an OME description; the TIFF
    tags ``tiff.XResolution/YResolution`` with a unit. The first that is there and plausible counts.

    Examples:
        >>> mpp_of_properties({"tiff.XResolution": "20000", "tiff.YResolution": "20000",
        ...                    "tiff.ResolutionUnit": "centimeter"})
        ((0.5, 0.5), 'tiff.XResolution')
    """
    refusals = []
    for pair, source in _mpp_candidates(properties):
        mpp, text = plausible_mpp(pair, source)
        if mpp is not None:
            return mpp, text
        refusals.append(text)
    return None, "; ".join(refusals) or "neither openslide.mpp-x nor tiff.XResolution with a unit is in the file"


def _mpp_candidates(properties: Mapping[str, str]) -> list[tuple[tuple[float, float], str]]:
    found = [
        (_pair(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")), "openslide.mpp-x"),
        (_ome_pair(properties.get("tiff.ImageDescription", "")), "OME PhysicalSizeX"),
        (_resolution_pair(properties), "tiff.XResolution"),
    ]
    return [(pair, source) for pair, source in found if pair is not None]


def _resolution_pair(properties: Mapping[str, str]) -> tuple[float, float] | None:
    um_per_unit = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    pair = _pair(properties.get("tiff.XResolution"), properties.get("tiff.YResolution"))
    return None if um_per_unit is None or pair is None else (um_per_unit / pair[0], um_per_unit / pair[1])


def _ome_pair(description: str) -> tuple[float, float] | None:
    if "<OME" not in description[:2000]:
        return None
    for axis in "XY":
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]*)"', description)
        if unit and unit.group(1) not in ("µm", "um", "&#181;m", "&#xB5;m"):
            return None
    sizes = [re.search(rf'PhysicalSize{axis}="([0-9.eE+-]+)"', description) for axis in "XY"]
    return _pair(*(size.group(1) if size else None for size in sizes))


def _pair(x: str | None, y: str | None) -> tuple[float, float] | None:
    try:
        values = (float(x or ""), float(y or x or ""))
    except ValueError:
        return None
    return values if all(math.isfinite(value) and value > 0 for value in values) else None
