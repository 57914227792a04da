"""Volumes read ahead: while one is encoded the next are decoded, in memory that does not grow with their number."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_dino.item_queue import ClaimedItem
from wsi_dino.provenance import slide_fingerprint
from wsi_dino.radiology.ct_features import volume_stat
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.volumes.volume import Volume

_BLOCKS_AHEAD = 2
_PUT_EVERY_S = 0.2


class StoppedError(Exception):
    """Nobody wants the blocks any more."""


@dataclass(eq=False)
class VolumeJob:
    """A volume in the course of being read.

    Attributes:
        row: what to read.
        claimed: the sole right to do so.
        volume_facts, volume_stat: what was found, set before the first block.
        reading_s: time spent on decoding, windowing and resizing.
        begun_s: when reading began, by `time.perf_counter`.
    """

    row: VolumeRow
    claimed: ClaimedItem
    blocks_queue: queue.Queue[np.ndarray | None] = field(default_factory=lambda: queue.Queue(_BLOCKS_AHEAD))
    reading: Future[None] | None = None
    volume_facts: dict[str, Any] = field(default_factory=dict)
    volume_stat: list[int] | None = None
    reading_s: float = 0.0
    begun_s: float = 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of images in order.

        Raises:
            Exception: whatever went wrong with reading.
        """
        while (block := self.blocks_queue.get()) is not None:
            yield block
        if self.reading is not None:
            self.reading.result()


class VolumeReaders:
    """Threads that read whole volumes each; at most `n_readers` volumes and a few blocks are in memory.

    Args:
        pool: of `n_readers` threads.
        open_row: reads a volume.
        images: cuts it into blocks of images.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        open_row: Callable[[VolumeRow], Volume],
        images: Callable[[Volume], Iterator[np.ndarray]],
    ) -> None:
        self._pool, self._open, self._images = pool, open_row, images
        self._stopped = threading.Event()

    def start(self, row: VolumeRow, claimed: ClaimedItem) -> VolumeJob:
        """Begin to read a volume as soon as a thread is free."""
        job = VolumeJob(row, claimed)
        job.reading = self._pool.submit(self._read, job)
        return job

    def stop(self) -> None:
        """Let readers drop what nobody will fetch."""
        self._stopped.set()

    def _read(self, job: VolumeJob) -> None:
        try:
            job.begun_s = begun = time.perf_counter()
            job.volume_stat = volume_stat(job.row.path)  # before reading: a file that changes meanwhile is read again
            volume = self._open(job.row)
            job.volume_facts = {**facts(volume), "volume_fingerprint": slide_fingerprint(job.row.path)}
            for block in self._images(volume):
                job.reading_s += time.perf_counter() - begun
                self._put(job, block)
                begun = time.perf_counter()
        except StoppedError:
            pass
        finally:
            self._end(job)

    def _put(self, job: VolumeJob, block: np.ndarray | None) -> None:
        while not self._stopped.is_set():
            try:
                return job.blocks_queue.put(block, timeout=_PUT_EVERY_S)
            except queue.Full:
                continue
        raise StoppedError

    def _end(self, job: VolumeJob) -> None:
        with contextlib.suppress(StoppedError):
            self._put(job, None)


def facts(volume: Volume) -> dict[str, Any]:
    """Return what rows and files tell of a volume."""
    return {
        "n_slices": len(volume),
        "shape": list(volume.voxels.shape),
        "spacing_mm": [round(float(length), 6) for length in volume.spacing_mm],
        "stored_axes": volume.stored_axes,
        "shown_axes": "LPS: anterior up, the patient's right on the left, slices from inferior to superior",
        "obliquity_deg": volume.obliquity_deg,
        "hu_state": volume.hu_state,
        "hu_reason": volume.hu_reason,
        "rescale": [volume.rescale.slope, volume.rescale.intercept],
        "remarks": "; ".join(volume.remarks),
    }
