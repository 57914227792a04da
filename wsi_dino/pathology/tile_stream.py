"""Tiles of many slides, read ahead by threads and handed out block by block in order, in bounded memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import numpy as np

_TILES_PER_READ = 8
_READ_AHEAD_BYTES = 64 * 2**20
_SLIDES_AHEAD = 2
_LEAST_BLOCKS = 4  # two with the encoder, one ready, one being read


class TileSource(Protocol):
    """A slide as the stream sees it."""

    tile_px: int

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield ``(start, stop, wanted)``: places of reading order, and which of them must be read."""

    def read_place(self, place: int) -> np.ndarray:
        """Return the tile at a place of reading order, uint8 ``(tile_px, tile_px, 3)``; called from many threads."""


@dataclass
class TileBlock:
    """Tiles ``start .. stop`` of reading order of one slide; only those that are wanted are filled in.

    Attributes:
        source: the slide.
        pixels: uint8 ``(stop - start, tile_px, tile_px, 3)``.
    """

    source: Any
    start: int
    stop: int
    pixels: np.ndarray
    reads: list[Future[None]] = field(default_factory=list)


@dataclass(frozen=True)
class SourceEnd:
    """No more blocks come of `source`; `error` is why reading it was given up, or None."""

    source: Any
    error: Exception | None = None


@dataclass(frozen=True)
class _Broken:
    error: BaseException


class TileStream:
    """Iterates over `TileBlock`, each to be given to `release`, and, after the last of each source, `SourceEnd`.

    One thread walks through `sources` (opening the next slide while the present one is read), a pool of
    threads reads. At most `memory_bytes` of pixels, but always four blocks, and two slides are in hand at
    a time, whatever the size and number of slides. When a tile cannot be read, its source ends with the
    error and the next goes on. Use it as a context manager: leaving it stops all threads.

    Args:
        sources: yields sources; called only in the stream's own thread, which also closes it. An error
            that it raises is raised again where the stream is iterated.
        n_threads: reading threads.
        memory_bytes: bound for pixels read ahead.
    """

    def __init__(self, sources: Iterator[TileSource], n_threads: int, *, memory_bytes: int = _READ_AHEAD_BYTES) -> None:
        self._sources = sources
        self._gate = _Gate(memory_bytes)
        self._events: queue.SimpleQueue[TileBlock | SourceEnd | _Broken | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="read")
        self._walker = threading.Thread(target=self._walk, name="slides", daemon=True)
        self._given_up: set[TileSource] = set()
        self._lock = threading.Lock()
        self.reading_s = 0.0
        self.waiting_s = 0.0
        self.n_read = 0

    def __enter__(self) -> TileStream:
        self._walker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._gate.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        # the walker may be waiting for another process's slides: it is a daemon and gives back what it then gets
        self._walker.join(timeout=1.0 if kind else None)

    # the walker's thread -----------------------------------------------------------------------
    def _walk(self) -> None:
        try:
            while self._gate.enter_source() and (source := next(self._sources, None)) is not None:
                self._read_ahead(source)
                self._events.put(SourceEnd(source))
        except BaseException as error:
            self._events.put(_Broken(error))
        finally:
            close: Callable[[], None] | None = getattr(self._sources, "close", None)
            if close is not None:
                close()
            self._events.put(None)

    def _read_ahead(self, source: TileSource) -> None:
        side = source.tile_px
        for start, stop, wanted in source.blocks():
            n_bytes = (stop - start) * side * side * 3
            if not self._gate.enter(n_bytes):
                return
            if source in self._given_up:
                self._gate.leave(n_bytes)
                return
            block = TileBlock(source, start, stop, np.empty((stop - start, side, side, 3), np.uint8))
            for first in range(0, len(wanted), _TILES_PER_READ):
                places = wanted[first : first + _TILES_PER_READ]
                block.reads.append(self._pool.submit(self._read, block, places))
            self._events.put(block)

    def _read(self, block: TileBlock, places: np.ndarray) -> None:
        if block.source in self._given_up:
            return
        begun = time.perf_counter()
        for place in places:
            block.pixels[place - block.start] = block.source.read_place(int(place))
        with self._lock:
            self.reading_s += time.perf_counter() - begun
            self.n_read += len(places)

    # the caller's thread -----------------------------------------------------------------------
    def __iter__(self) -> Iterator[TileBlock | SourceEnd]:
        while (event := self._next_event()) is not None:
            if isinstance(event, _Broken):
                raise event.error
            if isinstance(event, SourceEnd):
                if event.source not in self._given_up:
                    yield event
                self._given_up.discard(event.source)
                self._gate.leave_source()
                continue
            if (ready := self._ready(event)) is None:
                continue
            yield ready

    def _next_event(self) -> TileBlock | SourceEnd | _Broken | None:
        begun = time.perf_counter()
        try:
            return self._events.get()
        finally:
            self.waiting_s += time.perf_counter() - begun

    def _ready(self, block: TileBlock) -> TileBlock | SourceEnd | None:
        begun = time.perf_counter()
        error = next((error for read in block.reads if (error := read.exception()) is not None), None)
        self.waiting_s += time.perf_counter() - begun
        if error is None and block.source not in self._given_up:
            return block
        self.release(block)
        if block.source in self._given_up:
            return None
        if not isinstance(error, Exception):
            raise error or RuntimeError("a block that is neither read nor failed")
        self._given_up.add(block.source)
        return SourceEnd(block.source, error)

    def fail(self, error: BaseException) -> None:
        """Stop reading and raise `error` where the stream is iterated. From any thread."""
        self._gate.stop()
        self._events.put(_Broken(error))

    def release(self, block: TileBlock) -> None:
        """The pixels of `block` are no longer needed: as much may be read ahead. From any thread, once a block."""
        self._gate.leave(block.pixels.nbytes)


class _Gate:
    """Bounds what is in hand; `stop` turns everyone away."""

    def __init__(self, memory_bytes: int) -> None:
        self._limit = memory_bytes
        self._bytes = self._blocks = self._sources = 0
        self._stopped = False
        self._changed = threading.Condition()

    def enter(self, n_bytes: int) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._blocks < _LEAST_BLOCKS or self._bytes + n_bytes <= self._limit
            )
            self._bytes += n_bytes
            self._blocks += 1
            return not self._stopped

    def leave(self, n_bytes: int) -> None:
        with self._changed:
            self._bytes -= n_bytes
            self._blocks -= 1
            self._changed.notify_all()

    def enter_source(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._sources < _SLIDES_AHEAD)
            self._sources += 1
            return not self._stopped

    def leave_source(self) -> None:
        with self._changed:
            self._sources -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
