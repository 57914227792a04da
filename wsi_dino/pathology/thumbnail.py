"""A picture of a slide with its tissue contours and tiles, to judge the tiling at a glance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_dino.pathology.opencv import cv2
from wsi_dino.pathology.slide import Slide
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.pathology.tissue import Overview, Tissue
from wsi_dino.provenance import write_atomically

_SIDE_PX = 1600
_COARSE_SIDE_PX = 900
_READ_LIMIT_PX = 12_000_000
_JPEG_QUALITY = 85
_CONTOUR_RGB, _HOLE_RGB, _TILE_RGB = (0, 150, 60), (0, 90, 220), (20, 20, 20)
_SMALL_TILE_PX = 6.0


def read_for_thumbnail(slide: Slide, overview: Overview) -> Overview:
    """Return the picture to draw on: `overview` unless it is too coarse and a finer level costs little to read."""
    if max(overview.wh) >= _COARSE_SIDE_PX:
        return overview
    for level in range(len(slide.level_dimensions) - 1, -1, -1):
        width, height = slide.level_dimensions[level]
        if max(width, height) >= _COARSE_SIDE_PX:
            if width * height > _READ_LIMIT_PX:
                break
            return Overview(slide.read_level((0, 0), level, (width, height)), slide.level_downsamples[level])
    return overview


def draw_thumbnail(overview: Overview, tissue: Tissue, grid: TileGrid) -> np.ndarray:
    """Return uint8 RGB ``(height, width, 3)``, longer side at most 1600 px.

    Contours are green, holes and ignored areas blue, tiles thin dark squares (shaded where they are too
    small for an outline).
    """
    width, height = overview.wh
    factor = min(1.0, _SIDE_PX / max(width, height))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    rgb = overview.rgb.copy() if size == (width, height) else _shrink(overview.rgb, size)
    scale = (size[0] / (width * overview.downsample_xy[0]), size[1] / (height * overview.downsample_xy[1]))
    _draw_tiles(rgb, grid, scale)
    thickness = max(1, round(max(size) / 700))
    holes = [hole for of_one in tissue.holes for hole in of_one] + tissue.ignored
    for outlines, colour in ((tissue.contours, _CONTOUR_RGB), (holes, _HOLE_RGB)):
        lines = [np.rint(outline * scale).astype(np.int32) for outline in outlines]
        cv2.polylines(rgb, lines, True, colour, thickness)
    return rgb


def _shrink(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))


def _draw_tiles(rgb: np.ndarray, grid: TileGrid, scale: tuple[float, float]) -> None:
    first = np.rint(grid.xy * scale).astype(np.int64)
    last = np.rint((grid.xy + np.array(grid.tile_wh_level0)) * scale).astype(np.int64)
    if min(grid.tile_wh_level0[0] * scale[0], grid.tile_wh_level0[1] * scale[1]) < _SMALL_TILE_PX:
        _shade_tiles(rgb, first, last)
        return
    for (left, top), (right, bottom) in zip(first.tolist(), last.tolist(), strict=True):
        cv2.rectangle(rgb, (left, top), (right, bottom), _TILE_RGB, 1)


def _shade_tiles(rgb: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    covered = np.zeros(rgb.shape[:2], bool)
    for (left, top), (right, bottom) in zip(first.tolist(), last.tolist(), strict=True):
        covered[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    rgb[covered] = rgb[covered] // 4 * 3 + np.array(_CONTOUR_RGB, np.uint8) // 4


def write_thumbnail(path: Path, rgb: np.ndarray) -> None:
    """Write uint8 RGB ``(height, width, 3)`` as JPEG, atomically; equal pictures give equal bytes.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    with write_atomically(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
