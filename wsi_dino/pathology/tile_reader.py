"""Tiles of a grid as an encoder gets them: read from the slide and resampled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsi_dino.errors import TileGridError
from wsi_dino.pathology.opencv import cv2
from wsi_dino.pathology.slide import Slide
from wsi_dino.pathology.tile_grid import TileGrid


class TileReader:
    """Reads the tiles of `grid` from `slide`.

    Safe to share between threads, as `Slide` is. Grids are ordered by (y, x); reading them in that order,
    also by several threads that take the next index in turn, decodes each stored tile once.

    Raises:
        TileGridError: the grid was made for a slide of another size.
    """

    def __init__(self, slide: Slide, grid: TileGrid) -> None:
        if tuple(grid.slide_wh_level0) != slide.level_dimensions[0] or grid.level >= len(slide.level_dimensions):
            raise TileGridError(
                f"Reading tiles of {slide.path}: the grid is for a slide of {grid.slide_wh_level0} px with a level "
                f"{grid.level}, this one has {slide.level_dimensions}. Run `wsi-dino tile` again."
            )
        self._slide = slide
        self._grid = grid
        downsample = np.asarray(slide.level_downsamples[grid.level])
        self._xy_level = np.rint(np.asarray(grid.xy, np.float64).reshape(-1, 2) / downsample).astype(np.int64)

    def __len__(self) -> int:
        return len(self._grid)

    def read(self, index: int) -> np.ndarray:
        """Return tile `index`, uint8 RGB ``(tile_px, tile_px, 3)``, white outside of the slide.

        ``read_wh`` px of the grid's level are averaged over area down to ``tile_px``; where the slide is
        coarser than what was asked for, they are interpolated linearly.

        Raises:
            SlideError: the region cannot be read.
        """
        x, y = (int(value) for value in self._xy_level[index])
        region = self._slide.read_level((x, y), self._grid.level, self._grid.read_wh)
        return resample_tile(region, self._grid.tile_px)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(index) for index in range(len(self)))


def resample_tile(region: np.ndarray, tile_px: int) -> np.ndarray:
    """Return uint8 `region` ``(height, width, 3)`` as ``(tile_px, tile_px, 3)``."""
    height, width = region.shape[:2]
    if (height, width) == (tile_px, tile_px):
        return region
    shrinks = height >= tile_px and width >= tile_px
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(region, (tile_px, tile_px), interpolation=interpolation))
