"""The thread that stores what encoders give: journals, feature files, and the rows of finished slides."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from wsi_dino.errors import EncoderError, SlideError
from wsi_dino.feature_file import FeatureFile, write_feature_file
from wsi_dino.item_queue import ClaimedItem
from wsi_dino.pathology.embed_spec import EncoderTask, feature_path
from wsi_dino.pathology.embedded_slides import done_row
from wsi_dino.pathology.journal import JournalRows
from wsi_dino.pathology.slide_job import FailedSlide, SlideJob, Track
from wsi_dino.pathology.slide_planner import Job, SlidePlanner
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.pathology.tile_stream import TileBlock, TileStream
from wsi_dino.provenance import environment
from wsi_dino.run_folder import RunFolder

_BATCHES_IN_HAND = 16
_POLL_S = 0.1


@dataclass(frozen=True)
class EncodedBatch:
    """A batch that is with an encoder: of which slide and track, and where its features will be.

    Attributes:
        number: of the batch within the track.
        features: float32 ``(n, embed_dim)``, when they are there.
        last_of: the block of tiles that is free after it, or None.
    """

    job: SlideJob
    track: Track
    number: int
    features: Future[np.ndarray]
    last_of: TileBlock | None


class FeatureWriter:
    """Appends batches to journals and finishes slides, beside the encoder and in the order given.

    Use it as a context manager. An error (of the encoder, or a full disk) stops the stream and is raised
    where that is iterated, by the next call here, or on leaving.

    Args:
        run: the run folder.
        planner: whose claims are released.
        stream: told of blocks that are free, and of errors.
        report: told ``report(n_tiles, text=slide_id)`` of stored tiles.
    """

    def __init__(self, run: RunFolder, planner: SlidePlanner, stream: TileStream, report: Callable[..., None]) -> None:
        self._run, self._planner, self._stream, self._report = run, planner, stream, report
        self._todo: queue.Queue[Callable[[], None] | None] = queue.Queue(_BATCHES_IN_HAND)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)
        self.writing_s = 0.0

    def __enter__(self) -> FeatureWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def store(self, batch: EncodedBatch) -> None:
        """Keep the features of a batch as soon as they are there; may wait for earlier ones.

        Raises:
            StorageError: an earlier step found the disk full.
            EncoderError: an earlier batch did not fit the memory of the device.
        """
        self._put(lambda: self._append(batch))

    def finish(self, job: Job, error: Exception | None = None) -> None:
        """All batches of `job` have been given, or it failed with `error`."""
        self._put(lambda: self._finish(job, error))

    def _put(self, step: Callable[[], None] | None) -> None:
        while self._thread.is_alive():
            try:
                self._todo.put(step, timeout=_POLL_S)
                return
            except queue.Full:
                continue
        if self._error is not None and step is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (step := self._todo.get()) is not None:
                step()
        except BaseException as error:
            self._error = error
            self._stream.fail(error)

    # steps, in the writer's thread -------------------------------------------------------------
    def _append(self, batch: EncodedBatch) -> None:
        features = _result(batch)
        begun = time.perf_counter()
        if batch.last_of is not None:
            self._stream.release(batch.last_of)
        job, journal = batch.job, batch.track.journal
        if job.failure is not None:
            return
        with np.errstate(over="ignore"):
            rows = features.astype(journal.dtype)
        if not np.isfinite(rows).all():
            job.failure = _not_finite(batch, features)
            return
        journal.append(batch.number, rows)
        self._report(len(rows), text=job.slide_id)
        self.writing_s += time.perf_counter() - begun

    def _finish(self, job: Job, error: Exception | None) -> None:
        begun = time.perf_counter()
        if isinstance(job, FailedSlide):
            for task, claimed in job.claims:
                self._give_up(task, claimed, job.status, job.reason)
        else:
            if error is not None and job.failure is None:
                job.failure = str(error) if isinstance(error, SlideError) else f"{type(error).__name__}: {error}"
            for track in job.tracks:
                self._finish_track(job, track)
        self._planner.forget(job)
        self.writing_s += time.perf_counter() - begun

    def _finish_track(self, job: SlideJob, track: Track) -> None:
        if job.failure is not None:
            self._give_up(track.task, track.claimed, "failed", job.failure)
            return
        if not track.is_complete:
            raise RuntimeError(
                f"{job.slide_id}: {len(track.journal.batches)} of {track.n_batches} batches were encoded"
            )
        path = feature_path(self._run, track.task.name, job.slide_id)
        write_feature_file(path, feature_file_of(job, track))
        row = done_row(
            track.task,
            job.grid,
            job.slide.backend,
            slide_path=job.slide.path,
            seconds=job.seconds,
            n_encoded=len(job.grid) - track.n_resumed,
            n_resumed=track.n_resumed,
            reason="" if job.stain_fit in (None, "slide") else f"stain normalisation: {job.stain_fit}",
        )
        self._planner.finish(track.task, track.claimed, row)
        track.journal.delete()

    def _give_up(self, task: EncoderTask, claimed: ClaimedItem, status: str, reason: str) -> None:
        slide_id = claimed.item.key
        # features of an earlier request would otherwise stand among those of this one
        feature_path(self._run, task.name, slide_id).unlink(missing_ok=True)
        row: dict[str, Any] = {"encoder": task.name, "slide_id": slide_id, "status": status, "reason": reason}
        self._planner.finish(task, claimed, row | {"tiles": 0})


def feature_file_of(job: SlideJob, track: Track) -> FeatureFile:
    """Return the features of a complete journal in the order of the grid, with their provenance."""
    place_of_tile = np.empty(len(job.order), np.int64)
    place_of_tile[job.order] = np.arange(len(job.order))
    features: Any = JournalRows(track.journal, place_of_tile)
    return FeatureFile(features, job.grid.xy, feature_provenance(job, track))


def feature_provenance(job: SlideJob, track: Track) -> dict[str, Any]:
    """Return all that could change the features; no time, no host, no path."""
    grid, task = job.grid, track.task
    return {
        **task.identity,
        "tiles": grid.view,
        "batch_size": task.batch_size,
        "licence": task.encoder.spec.licence,
        **_seen_by_adapter(task, grid),
        "stain_fit": job.stain_fit,
        "slide": {
            "slide_id": grid.slide_id,
            "fingerprint": grid.slide_fingerprint,
            "backend": job.slide.backend,
            "mpp_xy": None if grid.mpp_xy is None else list(grid.mpp_xy),
            "mpp_source": grid.mpp_source,
        },
        "tiling": grid.description(),
        "request": task.spec.model_dump(mode="json"),
        "versions": environment(),
        "fingerprint": track.claimed.item.fingerprint,
        "coords_attrs": grid.coords_attrs,
    }


def _seen_by_adapter(task: EncoderTask, grid: TileGrid) -> dict[str, bool]:
    """Return whether the encoder's adapter has learnt from this slide, of which features are then no fair test."""
    adapter = getattr(task.encoder, "adapter", None)
    return {} if adapter is None else {"adapter_has_seen": adapter.has_learnt_from(grid.slide_fingerprint)}


def _result(batch: EncodedBatch) -> np.ndarray:
    try:
        return batch.features.result()
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        raise EncoderError(
            f"Embedding {batch.job.slide_id} with {batch.track.task.name}: batches of {batch.track.task.batch_size} "
            "tiles do not fit the memory of the device. Give a smaller --batch-size; what is done is kept."
        ) from error


def _not_finite(batch: EncodedBatch, features: np.ndarray) -> str:
    job, track = batch.job, batch.track
    with np.errstate(over="ignore"):
        row = int(np.flatnonzero(~np.isfinite(features.astype(track.journal.dtype)).all(axis=1))[0])
    x, y = (int(value) for value in job.grid.xy[job.order[batch.number * track.task.batch_size + row]])
    where = f"Embedding {job.slide_id} with {track.task.name}: the tile at x={x}, y={y}"
    if np.isfinite(features[row]).all():
        return f"{where} gives values too large for {track.journal.dtype}. Use --store-dtype float32."
    return f"{where} gives NaN or infinity. Use --precision fp32."
