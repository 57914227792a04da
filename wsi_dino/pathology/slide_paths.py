"""Where the slide files of a run are now, and whether they are still the ones that were tiled."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError, SlideError
from wsi_dino.pathology.discovery import discover_slides
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.provenance import slide_fingerprint


class SlidePaths:
    """Where the slide files are: where `tile` found them, else below another folder (looked into when needed)."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._elsewhere: dict[str, Path] | None = None
        self._lock = threading.Lock()

    def find(self, row: Mapping[str, Any]) -> Path:
        """Return the slide file of a row of the stage ``tile``.

        Raises:
            SlideError: it is nowhere, or the other folder holds no slides, or two with one slide_id.
        """
        slide_id, path = str(row["slide_id"]), Path(str(row.get("path", "")))
        if path.exists():
            return path
        moved = self._below_folder().get(slide_id)
        if moved is None:
            below = "" if self._folder is None else f" nor below {self._folder}"
            advice = "Name the folder that holds it now with --slides, or run `wsi-dino tile` again."
            raise SlideError(f"Opening slide {slide_id}: it is no longer at {path}{below}. {advice}")
        return moved

    def _below_folder(self) -> dict[str, Path]:
        with self._lock:
            if self._elsewhere is None:
                try:
                    found = [] if self._folder is None else discover_slides(self._folder)
                except ConfigError as error:
                    raise SlideError(str(error)) from error
                self._elsewhere = {source.slide_id: source.path for source in found}
            return self._elsewhere


def check_unchanged(path: Path, grid: TileGrid) -> None:
    """Compare the slide file with the one that was tiled.

    Raises:
        SlideError: its content is another one.
    """
    if slide_fingerprint(path) != grid.slide_fingerprint:
        raise SlideError(
            f"Opening slide {grid.slide_id}: {path} has changed since it was tiled. Run `wsi-dino tile` again."
        )


def slide_stat(path: Path | None) -> list[int] | None:
    """Return size and modification time, by which an unchanged file is known without reading it."""
    if path is None or not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
