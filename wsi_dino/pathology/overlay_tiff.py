"""The values of tiles as a tiled pyramidal TIFF that lies exactly over the slide, for OpenSlide, QuPath and ASAP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_dino.pathology.heatmap import blend, coloured, paint_tiles
from wsi_dino.pathology.pyramid_writer import write_pyramid
from wsi_dino.pathology.slide import WHITE, Slide
from wsi_dino.pathology.tile_values import TileValues

_TILE_SIDE_PX = 32  # of the overlay: the edge of a tile is true to a 64th of its side
_LONGEST_PX = 16_384
_LEAST_TILE_SIDE_PX = 8
_COARSEST_PX = 512
_STEP = 4


@dataclass(frozen=True)
class OverlayGeometry:
    """How an overlay lies on its slide: px (x, y) of the overlay shows level-0 px from (x, y) * downsample.

    Attributes:
        downsample: level-0 px along a px of the overlay, a power of two.
        wh: width and height of the overlay in px; the last ones may reach beyond the slide.
        mpp_xy: um/px of the overlay, or None when the slide's is unknown.
    """

    downsample: int
    wh: tuple[int, int]
    mpp_xy: tuple[float, float] | None


def plan_overlay(
    slide_wh_level0: tuple[int, int], tile_wh_level0: tuple[int, int], mpp_xy: tuple[float, float] | None
) -> OverlayGeometry:
    """Choose a resolution at which a tile is still 32 to 63 px wide, on huge slides 8 px or more.

    Args:
        slide_wh_level0: size of the slide.
        tile_wh_level0: footprint of a tile.
        mpp_xy: um/px of the slide at level 0.

    Examples:
        >>> plan_overlay((100_000, 80_001), (448, 448), (0.25, 0.25))
        OverlayGeometry(downsample=8, wh=(12500, 10001), mpp_xy=(2.0, 2.0))
    """
    downsample, side, longest = 1, min(tile_wh_level0), max(slide_wh_level0)
    while side >= downsample * 2 * _TILE_SIDE_PX or (
        longest > downsample * _LONGEST_PX and side >= downsample * 2 * _LEAST_TILE_SIDE_PX
    ):
        downsample *= 2
    wh = (math.ceil(slide_wh_level0[0] / downsample), math.ceil(slide_wh_level0[1] / downsample))
    mpp = None if mpp_xy is None else (mpp_xy[0] * downsample, mpp_xy[1] * downsample)
    return OverlayGeometry(downsample, wh, mpp)


def write_overlay_tiff(path: Path, slide: Slide, tiles: TileValues, mpp_xy: tuple[float, float] | None) -> None:
    """Write the coloured tiles over the tissue as an RGB pyramid, block by block: memory stays bounded.

    The resolution tags are the slide's um/px times the downsample, so that viewers that know um/px lay both
    over each other; px (0, 0) is the corner of both.

    Args:
        path: file to write, atomically.
        slide: opened.
        tiles: what is painted.
        mpp_xy: um/px of the slide at level 0; None leaves the tags out.

    Raises:
        SlideError: a part of the slide cannot be read; nothing is written.
        StorageError: the disk is full or the folder cannot be written.
    """
    geometry = plan_overlay(slide.level_dimensions[0], tiles.tile_wh_level0, mpp_xy)
    painter = _OverlayPainter(slide, tiles, geometry)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, painter, wh=geometry.wh, mpp=geometry.mpp_xy, downsamples=_downsamples(geometry.wh))


def _downsamples(wh: tuple[int, int]) -> list[int]:
    levels = [1]
    while max(wh) / levels[-1] > _COARSEST_PX:
        levels.append(levels[-1] * _STEP)
    return levels


class _OverlayPainter:
    """Paints regions of the overlay: tissue from the coarsest level that is fine enough, colours above it."""

    def __init__(self, slide: Slide, tiles: TileValues, geometry: OverlayGeometry) -> None:
        self._slide, self._tiles, self._downsample = slide, tiles, geometry.downsample
        self._shades = tiles.shades
        self._low = tiles.xy_level0 / geometry.downsample
        self._high = self._low + np.asarray(tiles.tile_wh_level0) / geometry.downsample
        fine = [i for i, pair in enumerate(slide.level_downsamples) if max(pair) <= geometry.downsample * 1.01]
        self._level = max(fine, default=0, key=lambda level: slide.level_downsamples[level][0])

    def __call__(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        tissue, origin, end = self._tissue(x, y, w, h), np.array([x, y]), np.array([x + w, y + h])
        near = ((self._low < end + 1) & (self._high > origin - 1)).all(1)
        if not near.any():
            return tissue
        xy = self._tiles.xy_level0[near] - origin * self._downsample
        scale = (float(self._downsample), float(self._downsample))
        shades, covered = paint_tiles(self._shades[near], xy, self._tiles.tile_wh_level0, (w, h), scale)
        return blend(tissue, coloured(shades, covered))

    def _tissue(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        """Read a region and bring it to the px of the overlay by the mean of each px's area."""
        from wsi_dino.pathology.opencv import cv2

        scale = self._downsample / np.asarray(self._slide.level_downsamples[self._level])
        low = np.rint(np.array([x, y]) * scale).astype(int)
        high = np.maximum(np.rint(np.array([x + w, y + h]) * scale).astype(int), low + 1)
        size = np.asarray(self._slide.level_dimensions[self._level])
        wh = np.minimum(high, size) - low  # the last px of the overlay may reach beyond the slide
        region = np.full((high[1] - low[1], high[0] - low[0], 3), WHITE, np.uint8)
        if (wh > 0).all():
            pixels = self._slide.read_level((int(low[0]), int(low[1])), self._level, (int(wh[0]), int(wh[1])))
            region[: wh[1], : wh[0]] = pixels
        return np.asarray(cv2.resize(region, (w, h), interpolation=cv2.INTER_AREA))
