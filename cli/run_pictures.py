"""Pictures of a run's slides, where their files still are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.errors import SlideError

if TYPE_CHECKING:
    import numpy as np

    from wsi_dino.mil.attention_file import SlideAttention
    from wsi_dino.pathology.slide_paths import SlidePaths
    from wsi_dino.pathology.tile_values import TileValues
    from wsi_dino.run_folder import RunFolder


class RunPictures:
    """Pictures of a run's slides for the report and heatmaps; a slide that is gone is said, not fatal.

    Args:
        runs: those whose stage `tile` knows where the slides lie.
        folder: where to look for slides that are no longer there.
    """

    def __init__(self, *runs: RunFolder, folder: Path | None = None) -> None:
        self._runs, self._folder = runs, folder
        self._moved: SlidePaths | None = None

    def tiles(self, slide_id: str, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int]) -> list[np.ndarray]:
        """Return small pictures of tiles."""
        from wsi_dino.pathology.heatmap import read_tiles

        return read_tiles(self.path(slide_id), xy_level0, tile_wh_level0)

    def overview(self, attention: SlideAttention) -> np.ndarray:
        """Return the slide with its attention laid over it."""
        from wsi_dino.pathology.heatmap import heatmap_picture

        return heatmap_picture(self.path(attention.slide_id), attention_values(attention), max_px=700)

    def write_heatmap(self, path: Path, attention: SlideAttention, title: str) -> None:
        """Write the slide with its attention and a legend."""
        from wsi_dino.pathology.heatmap import write_heatmap

        write_heatmap(path, self.path(attention.slide_id), attention_values(attention), title=title)

    def path(self, slide_id: str) -> Path:
        """Return where the slide file of a slide is.

        Raises:
            SlideError: the runs do not know it, or it is gone.
        """
        stated = next(
            (row["path"] for run in self._runs if (row := run.read_row("tile", slide_id) or {}).get("path")), ""
        )
        if self._folder is not None:
            return self._below(self._folder).find({"slide_id": slide_id, "path": stated or slide_id})
        if not stated:
            raise SlideError(f"The run does not know the slide file of {slide_id}: it was not tiled here.")
        path = Path(stated)
        if not path.exists():
            raise SlideError(f"The slide file of {slide_id}, {path.name}, is no longer where it was tiled.")
        return path

    def mpp_xy(self, slide_id: str) -> tuple[float, float] | None:
        """Return um/px at level 0 as the slide was tiled with, or None where the runs do not say."""
        from wsi_dino.errors import TileGridError
        from wsi_dino.pathology.tile_grid import read_tile_grid

        for run in self._runs:
            try:
                return read_tile_grid(run.tiles / f"{slide_id}.h5").mpp_xy
            except TileGridError:
                continue
        return None

    def _below(self, folder: Path) -> SlidePaths:
        from wsi_dino.pathology.slide_paths import SlidePaths

        self._moved = self._moved or SlidePaths(folder)
        return self._moved


def attention_values(attention: SlideAttention) -> TileValues:
    """Return attention in the form that can be painted.

    Raises:
        SlideError: the features did not say how large their tiles are.
    """
    from wsi_dino.pathology.tile_values import TileValues

    weights, coords = attention.attention_weights, attention.coords
    return TileValues(attention.slide_id, "attention", weights, coords, footprint_of(attention))


def footprint_of(attention: SlideAttention) -> tuple[int, int]:
    """Return width and height of a tile in level-0 px.

    Raises:
        SlideError: the features did not say.
    """
    if attention.tile_wh_level0 is None:
        raise SlideError(f"The features of {attention.slide_id} do not say how large their tiles are on the slide.")
    return attention.tile_wh_level0
