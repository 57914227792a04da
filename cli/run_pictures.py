"""Pictures of a run's slides, where their files still are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.errors import SlideError

if TYPE_CHECKING:
    import numpy as np

    from wsi_dino.mil.attention_file import SlideAttention
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

        return read_tiles(self._path(slide_id), xy_level0, tile_wh_level0)

    def overview(self, attention: SlideAttention) -> np.ndarray:
        """Return the slide with its attention laid over it."""
        from wsi_dino.pathology.heatmap import attention_picture

        path, footprint = self._path(attention.slide_id), _footprint(attention)
        return attention_picture(path, attention.attention_weights, attention.coords, footprint, max_px=700)

    def write_heatmap(self, path: Path, attention: SlideAttention, title: str) -> None:
        """Write the slide with its attention and a legend."""
        from wsi_dino.pathology.heatmap import write_heatmap

        slide, footprint = self._path(attention.slide_id), _footprint(attention)
        write_heatmap(path, slide, attention.attention_weights, attention.coords, footprint, title=title)

    def _path(self, slide_id: str) -> Path:
        stated = next(
            (row["path"] for run in self._runs if (row := run.read_row("tile", slide_id) or {}).get("path")), ""
        )
        if not stated:
            raise SlideError(f"The run does not know the slide file of {slide_id}: it was not tiled here.")
        path = Path(stated)
        if not path.exists():
            raise SlideError(f"The slide file of {slide_id}, {path.name}, is no longer where it was tiled.")
        return path


def _footprint(attention: SlideAttention) -> tuple[int, int]:
    if attention.tile_wh_level0 is None:
        raise SlideError(f"The features of {attention.slide_id} do not say how large their tiles are on the slide.")
    return attention.tile_wh_level0
