"""All volumes of a data set through one encoder: reading, resizing and encoding at once, resumed by fingerprint."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from wsi_dino.encoders.executors import available_cores, single_threaded_pool
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import EncoderError, StorageError, VolumeError, WsiDinoError
from wsi_dino.item_queue import ClaimedItem, Item, ItemQueue, LateItem
from wsi_dino.provenance import as_storage_error
from wsi_dino.radiology.ct_features import CtFeatures
from wsi_dino.radiology.ct_slices import slice_images
from wsi_dino.radiology.ct_stream import VolumeJob, VolumeReaders
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.volumes.reading import open_volume
from wsi_dino.volumes.volume import Volume

_BATCHES_AT_ONCE = 2  # the next one starts while the last one's results are fetched
_BLOCK_BYTES = 64 * 2**20
_MOST_READERS = 4

Report = Callable[..., None]


class SliceEncoder(Protocol):
    """An encoder as this room needs it."""

    @property
    def spec(self) -> EncoderSpec: ...

    @property
    def input_px(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def embed(self, pixels: np.ndarray) -> np.ndarray: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass
class CtEmbedOutcome:
    """What a call of `embed_volumes` did.

    Attributes:
        rows: one a volume.
        n_kept: volumes that were finished before.
        n_slices: encoded now.
        seconds: of the whole; `reading_s` (sum over threads) and `encoding_s` of its parts, which overlap.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    n_kept: int = 0
    n_slices: int = 0
    seconds: float = 0.0
    reading_s: float = 0.0
    encoding_s: float = 0.0

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of volumes that failed."""
        return [row for row in self.rows if row["status"] == "failed"]

    @property
    def overlap_gain(self) -> float | None:
        """How much longer the parts would take one after the other; None when nothing was done."""
        return (self.reading_s + self.encoding_s) / self.seconds if self.n_slices and self.seconds else None


def embed_volumes(
    features: CtFeatures,
    encoder: SliceEncoder,
    rows: Sequence[VolumeRow],
    *,
    with_slices: bool = False,
    readers: int = 0,
    report: Report = lambda *_, **__: None,
) -> CtEmbedOutcome:
    """Write the features of every volume that has none of this request yet.

    What goes wrong with one volume is its row and no trouble for the others. Several processes may share the run.

    Args:
        features: where they lie.
        encoder: loaded.
        rows: the volumes.
        with_slices: store the vectors of all slices too.
        readers: threads that decode, each with one volume in memory; 0 = one a core, at most 4.
        report: told ``report(n_volumes, text=)``.

    Raises:
        StorageError: the disk is full or the run folder cannot be written; what is finished is kept.
    """
    by_id = {row.volume_id: row for row in rows}
    items = [LateItem(row.volume_id, partial(features.item_fingerprint, row)) for row in rows]

    def is_intact(item: Item, row: dict[str, Any]) -> bool:
        return features.is_intact(row, by_id[item.key], item.fingerprint, with_slices=with_slices)

    costs = {row.volume_id: _cost(row) for row in rows}
    queue = ItemQueue(features.run, features.stage, items, is_intact, costs=costs, is_divided=True)
    work = _Work(features, encoder, by_id, queue, with_slices, report)
    begun = time.perf_counter()
    work.all(readers or min(_MOST_READERS, available_cores()))
    return replace(work.outcome, rows=queue.rows(), n_kept=queue.n_reused, seconds=time.perf_counter() - begun)


class _Work:
    def __init__(
        self, features: CtFeatures, encoder: SliceEncoder, by_id: dict[str, VolumeRow], queue: ItemQueue,
        with_slices: bool, report: Report,
    ) -> None:  # fmt: skip
        self._features, self._encoder, self._by_id, self._queue = features, encoder, by_id, queue
        self._with_slices, self._report = with_slices, report
        self._places = threading.BoundedSemaphore(_BATCHES_AT_ONCE)
        self._lock = threading.Lock()
        self._active, self._since_s = 0, 0.0
        self._held: dict[str, ClaimedItem] = {}
        self._waiting: deque[tuple[VolumeJob, list[Future[np.ndarray]]]] = deque()
        self.outcome = CtEmbedOutcome()

    def all(self, n_readers: int) -> None:
        reading = single_threaded_pool(n_readers)
        readers = VolumeReaders(reading, self._open, self._images)
        in_hand: deque[VolumeJob] = deque()
        keys = iter(self._queue.in_turn)
        try:
            with ThreadPoolExecutor(_BATCHES_AT_ONCE, "encode") as encoding:
                while True:
                    while len(in_hand) < n_readers and (claimed := self._next_free(keys)) is not None:
                        in_hand.append(readers.start(self._row_of(claimed), claimed))
                    if in_hand:
                        self._encode(in_hand.popleft(), encoding)
                        continue
                    # Waits for other processes, which may be waiting for us: nothing of ours is left to do here.
                    self._finish_waiting()
                    if (last := self._queue.take()) is None:
                        break
                    in_hand.append(readers.start(self._row_of(last), last))
        finally:
            readers.stop()
            reading.shutdown(wait=True, cancel_futures=True)
            for claimed in self._held.values():
                self._queue.give_back(claimed)

    def _next_free(self, keys: Iterator[str]) -> ClaimedItem | None:
        """Return the next that is unfinished and that nobody works on."""
        return next((claimed for key in keys if (claimed := self._queue.take_if_free(key)) is not None), None)

    def _row_of(self, claimed: ClaimedItem) -> VolumeRow:
        self._held[claimed.item.key] = claimed
        return self._by_id[claimed.item.key]

    def _finish(self, job: VolumeJob, row: dict[str, Any]) -> None:
        del self._held[job.row.volume_id]  # `finish` gives the claim up, whatever happens in it
        self._queue.finish(job.claimed, row)
        self._report(1, text=job.row.volume_id)

    def _open(self, row: VolumeRow) -> Volume:
        if row.trouble:
            raise VolumeError(f"Reading {row.path}: {row.trouble}.")
        return open_volume(row.path, rescale=row.rescale, spacing_mm=row.spacing_mm, hu=self._features.spec.hu)

    def _images(self, volume: Volume) -> Iterator[np.ndarray]:
        side = self._encoder.input_px
        n_at_once = max(1, min(self._encoder.batch_size, _BLOCK_BYTES // (3 * side * side)))
        return slice_images(volume, self._features.spec, side, self._encoder.spec.interpolation, n_at_once)

    # the caller's thread -----------------------------------------------------------------------
    def _encode(self, job: VolumeJob, pool: ThreadPoolExecutor) -> None:
        """Give the blocks of one volume to the encoder, then finish the volume before it."""
        futures: list[Future[np.ndarray]] = []
        try:
            for block in job.blocks():
                self._places.acquire()
                futures.append(pool.submit(self._embed, block))
        except BaseException as error:
            self._failed(job, error)
            return
        self._finish_waiting()
        self._waiting.append((job, futures))

    def _embed(self, pixels: np.ndarray) -> np.ndarray:
        with self._lock:
            self._active += 1
            self._since_s = time.perf_counter() if self._active == 1 else self._since_s
        try:
            return self._encoder.embed(pixels)
        finally:
            with self._lock:
                self._active -= 1
                self.outcome.encoding_s += 0.0 if self._active else time.perf_counter() - self._since_s
            self._places.release()

    def _finish_waiting(self) -> None:
        while self._waiting:
            job, futures = self._waiting[0]
            try:
                row = self._written(job, np.concatenate([future.result() for future in futures]))
            except BaseException as error:
                self._waiting.popleft()
                self._failed(job, error)
                continue
            self._waiting.popleft()
            self._finish(job, row)

    def _written(self, job: VolumeJob, vectors: np.ndarray) -> dict[str, Any]:
        if not np.isfinite(vectors).all():
            raise VolumeError(f"Encoding {job.row.volume_id}: the encoder gives NaN or infinity. Use --precision fp32.")
        fingerprint = job.claimed.item.fingerprint
        self._features.write(job.row, vectors, job.volume_facts, fingerprint, with_slices=self._with_slices)
        self.outcome.n_slices += len(vectors)
        self.outcome.reading_s += job.reading_s
        return {
            **_row(job, "done", ""),
            **job.volume_facts,
            "volume_stat": job.volume_stat,
        }

    def _failed(self, job: VolumeJob, error: BaseException) -> None:
        """Store the row of a volume that failed; raise what is no trouble of the volume's own."""
        if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
            raise EncoderError(
                f"Encoding {job.row.volume_id} with {self._encoder.spec.name}: its slices do not fit the memory of the "
                "device. Give a smaller --size, or --device cpu; what is done is kept."
            ) from error
        storage = as_storage_error(error, self._features.folder) if isinstance(error, OSError) else None
        if not isinstance(error, (WsiDinoError, OSError, MemoryError)) or isinstance(error, StorageError):
            raise error
        if storage is not None and "disk is full" in str(storage):
            raise storage from error
        reason = str(error) or type(error).__name__
        self._finish(job, _row(job, "failed", reason))


def _cost(row: VolumeRow) -> float:
    """Return bytes of the files, of which the slices are made that are encoded."""
    try:
        files = row.path.iterdir() if row.path.is_dir() else [row.path]
        return float(sum(file.stat().st_size for file in files))
    except OSError:
        return 0.0


def _row(job: VolumeJob, status: str, reason: str) -> dict[str, Any]:
    return {
        "volume_id": job.row.volume_id,
        "patient_id": job.row.patient_id,
        "status": status,
        "reason": reason,
        "seconds": round(time.perf_counter() - job.begun_s, 3),
    }
