"""One slide in the course of being embedded by one or several encoders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from wsi_dino.item_queue import ClaimedItem
from wsi_dino.pathology.embed_spec import EncoderTask
from wsi_dino.pathology.journal import EncodingJournal
from wsi_dino.pathology.slide import Slide
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.pathology.tile_reader import TileReader

TileNormaliser = Callable[[np.ndarray], np.ndarray]


def reading_order(grid: TileGrid) -> np.ndarray:
    """Return tile indices, int64 ``(n,)``, by (y, x): so read, each stored tile of the slide is decoded once.

    Equal to the order of the grid except for grids in another one (CLAM's goes x first, contour by contour).
    """
    xy = np.asarray(grid.xy).reshape(-1, 2)
    return np.lexsort((xy[:, 0], xy[:, 1])).astype(np.int64)


@dataclass(eq=False)
class Track:
    """What one encoder has of one slide.

    Attributes:
        task: the encoder and its request.
        claimed: the sole right to work on it.
        journal: encoded batches; batch ``k`` holds the places ``k * batch_size ...`` of reading order.
        missing: batches that the journal lacked at the start; not changed afterwards.
        n_resumed: tiles that the journal already held.
    """

    task: EncoderTask
    claimed: ClaimedItem
    journal: EncodingJournal
    missing: frozenset[int] = frozenset()
    n_batches: int = 0
    n_resumed: int = 0

    def start(self, n_tiles: int) -> None:
        """Find out what is missing."""
        self.n_batches = -(-n_tiles // self.task.batch_size)
        self.missing = frozenset(range(self.n_batches)) - set(self.journal.batches)
        self.n_resumed = sum(self.journal.batches.values())

    @property
    def is_complete(self) -> bool:
        """Whether the journal holds every batch."""
        return len(self.journal.batches) == self.n_batches

    def batches_within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield missing batches as ``(batch, first, last)`` places; blocks are whole multiples of batches."""
        size = self.task.batch_size
        for batch in range(start // size, -(-stop // size)):
            if batch in self.missing:
                yield batch, batch * size, min((batch + 1) * size, stop)


@dataclass(eq=False)
class SlideJob:
    """An opened slide with its tiles in reading order, and a track for each encoder that misses it.

    Attributes:
        failure: why the slide was given up, or None; set once, by whoever finds out.
    """

    slide: Slide
    grid: TileGrid
    tracks: list[Track]
    normalise: TileNormaliser | None = None
    stain_fit: str | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        self.tile_px = self.grid.tile_px
        self.order = reading_order(self.grid)
        self._reader = TileReader(self.slide, self.grid)
        self._begun_s: float | None = None
        for track in self.tracks:
            track.start(len(self.grid))

    @property
    def slide_id(self) -> str:
        """Text id of the slide."""
        return self.grid.slide_id

    def begin(self) -> None:
        """The encoder gets its first batch; only the first call counts."""
        if self._begun_s is None:
            self._begun_s = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the encoder got the first batch (the slide was opened and read ahead of that)."""
        return 0.0 if self._begun_s is None else time.perf_counter() - self._begun_s

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield ``(start, stop, wanted)`` places until all is read or the slide has failed."""
        size = max((track.task.batch_size for track in self.tracks), default=1)
        for start in range(0, len(self.order), size):
            stop = min(start + size, len(self.order))
            wanted = np.zeros(stop - start, bool)
            for track in self.tracks:
                for _, first, last in track.batches_within(start, stop):
                    wanted[first - start : last - start] = True
            if self.failure is not None:
                return
            if wanted.any():
                yield start, stop, start + np.flatnonzero(wanted)

    def read_place(self, place: int) -> np.ndarray:
        """Return a tile by its place in reading order, uint8 ``(tile_px, tile_px, 3)``, stain-normalised if asked."""
        tile = self._reader.read(int(self.order[place]))
        return tile if self.normalise is None else self.normalise(tile)

    def close(self) -> None:
        """Close the slide and the journals; their files stay."""
        self.slide.close()
        for track in self.tracks:
            track.journal.close()


@dataclass(eq=False)
class FailedSlide:
    """A slide that could not even be opened, or has nothing to embed; it goes through the stream as a job does."""

    slide_id: str
    claims: list[tuple[EncoderTask, ClaimedItem]]
    status: str
    reason: str
    tile_px: int = 1

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield nothing."""
        return iter(())

    def read_place(self, place: int) -> np.ndarray:
        """Never called."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close."""
