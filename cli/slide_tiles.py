"""Tiles of a run's slides for learning that takes pixels; where `pathology` and `mil` meet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino.cli import console

if TYPE_CHECKING:
    import numpy as np

    from wsi_dino.encoders.encoder import Encoder
    from wsi_dino.pathology.embed_spec import EmbedSpec
    from wsi_dino.run_folder import RunFolder

Bars = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


class RunTiles:
    """The `SlideTiles` of `mil.adaptation` over a tiled run.

    Args:
        run: the run.
        spec: the request for features.
        slides_folder: where slides are looked for that are not where they were tiled.
        bars: opens a progress bar by title and unit.
        workers: reading threads while embedding.
    """

    def __init__(
        self, run: RunFolder, spec: EmbedSpec, slides_folder: Path | None, bars: Bars, workers: int
    ) -> None:  # fmt: skip
        from wsi_dino.pathology.tile_sampler import TileSampler

        self._run, self._spec, self._slides_folder = run, spec, slides_folder
        self._bars, self._workers = bars, workers
        self._sampler = sampler = TileSampler(run, slides_folder)
        self.fingerprints = lru_cache(maxsize=None)(self._fingerprints)
        self.read: Callable[[str, Sequence[int]], np.ndarray] = sampler.read
        self.check: Callable[[str], None] = sampler.check

    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the rows of the stage ``tile``."""
        return self._sampler.rows

    def _fingerprints(self, slide_id: str) -> tuple[str, str]:
        grid = self._sampler.grid(slide_id)
        return grid.slide_fingerprint, grid.fingerprint

    def embed(self, encoder: Encoder, slide_ids: Collection[str], title: str) -> Mapping[str, str]:
        """Write the features of slides to the run; return the slides that failed, and why."""
        from wsi_dino.pathology.embedding import embed_slides

        with self._bars(title, "tiles") as progress:
            outcome = embed_slides(
                self._run, [encoder], self._spec, slides_folder=self._slides_folder, workers=self._workers,
                progress=progress, notice=console.say, only=slide_ids,
            )  # fmt: skip
        rows = outcome.encoders[0].rows
        return {str(row["slide_id"]): str(row.get("reason") or "") for row in rows if row["status"] != "done"}
