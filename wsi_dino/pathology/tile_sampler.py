"""Chosen tiles of the slides of a run, as an encoder gets them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import SlideError
from wsi_dino.pathology.embed_spec import tile_path
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.slide_paths import SlidePaths, check_unchanged
from wsi_dino.pathology.tile_grid import TileGrid, read_tile_grid
from wsi_dino.pathology.tile_reader import TileReader
from wsi_dino.run_folder import RunFolder


class TileSampler:
    """Reads tiles by slide and index; slides are opened for each call and closed again. Safe to share by threads.

    Args:
        run: tiled.
        slides_folder: where slides are looked for that are not where they were tiled.
        backend: slide reader, see `slide.open_slide`.
    """

    def __init__(self, run: RunFolder, slides_folder: Path | None = None, backend: str = "auto") -> None:
        self._run, self._paths, self._backend = run, SlidePaths(slides_folder), backend

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the stage ``tile`` by slide."""
        return {str(row["slide_id"]): row for row in self._run.rows("tile")}

    def grid(self, slide_id: str) -> TileGrid:
        """Return the tiles of a slide.

        Raises:
            TileGridError: its tile file is missing or broken.
        """
        return read_tile_grid(tile_path(self._run, slide_id))

    def check(self, slide_id: str) -> None:
        """Look whether the slide is there, the one that was tiled, and its first tile can be read.

        Raises:
            SlideError, TileGridError: it is not.
        """
        grid = self.grid(slide_id)
        path = self._paths.find(self._row(slide_id))
        check_unchanged(path, grid)
        if len(grid):
            self.read(slide_id, [0])

    def read(self, slide_id: str, indices: Sequence[int]) -> np.ndarray:
        """Return uint8 RGB ``(n, tile_px, tile_px, 3)``.

        Raises:
            SlideError, TileGridError: the slide is not there, or a tile of it cannot be read.
        """
        grid = self.grid(slide_id)
        slide = open_slide(self._paths.find(self._row(slide_id)), slide_id=slide_id, backend=self._backend)
        try:
            reader = TileReader(slide, grid)
            tiles = np.empty((len(indices), grid.tile_px, grid.tile_px, 3), np.uint8)
            for place, index in enumerate(indices):
                tiles[place] = reader.read(int(index))
        finally:
            slide.close()
        return tiles

    def _row(self, slide_id: str) -> dict[str, Any]:
        if slide_id not in self.rows:
            raise SlideError(f"Opening slide {slide_id}: it was not tiled in this run. Run `wsi-dino tile`.")
        return self.rows[slide_id]
