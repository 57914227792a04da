"""Pictures of a run's slides, where their files still are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.errors import SlideError

if TYPE_CHECKING:
    import numpy as np

    from wsi_dino.mil.attention_file import SlideAttention
    from wsi_dino.pathology.tile_values import TileValues
    from wsi_dino.run_folder import RunFolder


class RunPictures:
    """Pictures of a run's slides for the report and heatmaps; a slide that is gone is said, not fatal.

    Args:
        runs: those whose stage `tile` knows where the slides lie.
    """

    def __init__(self, *runs: RunFolder) -> None:
        self._runs = runs

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
        if not stated:
            raise SlideError(f"The run does not know the slide file of {slide_id}: it was not tiled here.")
        path = Path(stated)
        if not path.exists():
            raise SlideError(f"The slide file of {slide_id}, {path.name}, is no longer where it was tiled.")
        return path


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
