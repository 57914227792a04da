"""All slides of a run through one or several encoders: each tile read once, nothing lost, nothing doubled."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino import share
from wsi_dino.errors import ConfigError
from wsi_dino.pathology.embed_spec import EmbedSpec, EncoderTask, TileEncoder
from wsi_dino.pathology.embed_table import write_embed_table
from wsi_dino.pathology.embedded_slides import check_features_folder
from wsi_dino.pathology.feature_writer import EncodedBatch, FeatureWriter
from wsi_dino.pathology.slide_job import SlideJob
from wsi_dino.pathology.slide_paths import SlidePaths
from wsi_dino.pathology.slide_planner import SlidePlanner
from wsi_dino.pathology.stain import StainReference
from wsi_dino.pathology.tile_stream import SourceEnd, TileBlock, TileStream
from wsi_dino.provenance import remove_stale_temporaries
from wsi_dino.run_folder import RunFolder

# Two batches in the encoder's hands: the next one starts while the last one's results are fetched.
_BATCHES_AT_ONCE = 2

Report = Callable[..., None]


@dataclass
class EncoderOutcome:
    """What one encoder did in one call of `embed_slides`.

    Attributes:
        rows: one a slide of the run.
        tiles_encoded: by the model, in this call.
        tiles_resumed: taken from journals of interrupted calls.
        slides_kept: finished by earlier calls, or by another process during this one.
        slides_finished: ids of those that this call brought to an end.
    """

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    tiles_encoded: int = 0
    tiles_resumed: int = 0
    slides_kept: int = 0
    slides_finished: frozenset[str] = frozenset()

    def count(self, status: str) -> int:
        """Return how many slides have `status`."""
        return sum(row["status"] == status for row in self.rows)


@dataclass
class EmbedOutcome:
    """What a call of `embed_slides` did, and how long its stages were busy.

    Attributes:
        encoders: one outcome an encoder.
        seconds: of the whole, without loading encoders.
        load: share of that time in which reading (mean over threads), encoding and writing were at work;
            the highest is the stage that limits.
    """

    encoders: list[EncoderOutcome]
    seconds: float
    load: dict[str, float]

    @property
    def limited_by(self) -> str:
        """The busiest stage."""
        return max(self.load, key=lambda stage: self.load[stage])


def merged_outcome(outcomes: Sequence[EmbedOutcome]) -> EmbedOutcome:
    """Return what processes that shared a run did together; each of them saw every slide to its end.

    Args:
        outcomes: of all that came through, with the same encoders in the same order; at least one.
    """
    seconds = max(one.seconds for one in outcomes)
    load = {
        stage: round(sum(one.load[stage] * one.seconds for one in outcomes) / (seconds * len(outcomes)), 4)
        for stage in outcomes[0].load
    }
    of_each = zip(*(one.encoders for one in outcomes), strict=True)
    return EmbedOutcome([_merged_encoder(parts) for parts in of_each], seconds, load)


def _merged_encoder(parts: Sequence[EncoderOutcome]) -> EncoderOutcome:
    rows = parts[0].rows
    finished = frozenset[str]().union(*(part.slides_finished for part in parts))
    return EncoderOutcome(
        parts[0].name,
        rows,
        tiles_encoded=sum(part.tiles_encoded for part in parts),
        tiles_resumed=sum(part.tiles_resumed for part in parts),
        slides_kept=sum(row["slide_id"] not in finished for row in rows),
        slides_finished=finished,
    )


def embed_slides(
    run: RunFolder,
    encoders: Sequence[TileEncoder],
    spec: EmbedSpec,
    *,
    stain: StainReference | None = None,
    slides_folder: Path | None = None,
    workers: int = 0,
    progress: Report | None = None,
    notice: Callable[[str], None] | None = None,
    only: Collection[str] | None = None,
) -> EmbedOutcome:
    """Write ``features/ENCODER/SLIDE.h5`` for every tiled slide of `run`, and ``embed.csv``.

    A slide whose file was made with the same request, weights, tiles and slide is left as it is; one that
    was interrupted goes on from its last stored batch, and its file is the same to the bit as without the
    interruption. What goes wrong with one slide is its row and no trouble for the others.

    Args:
        run: the run folder, tiled.
        encoders: loaded; each tile is read once for all of them.
        spec: the request.
        stain: the reference that `spec` names, or None.
        slides_folder: where slides are looked for by slide_id that are not where they were tiled.
        workers: reading threads; 0 = one for each core.
        progress: told ``progress(n_tiles, total=, text=)``.
        notice: told what a reader should know before the work starts.
        only: slides to embed; None for all of the run.

    Raises:
        PartDone: this process has a part of the slides (`share`), and it is done.
        ConfigError: nothing is tiled, or the run holds features that cannot be mixed with these.
        StorageError: the disk is full or the run folder cannot be written; journals are kept.
    """
    report, tell = progress or _say_nothing, notice or _say_nothing
    if not run.row_names("tile"):
        raise ConfigError(
            f"Embedding {run.path}: no slide of it is tiled. Run `wsi-dino tile SLIDES --run {run.path}` first."
        )
    tasks = make_tasks(encoders, spec)
    planner = SlidePlanner(run, tasks, SlidePaths(slides_folder), stain, report, only)
    for task in tasks:
        n_other = check_features_folder(run, task, planner.slide_ids)
        if n_other:
            tell(f"{task.name}: {n_other} slides have features of another choice; they are made anew.")
        remove_stale_temporaries(run.features(task.name))
    report(total=planner.n_tiles)
    outcome = _Pipeline(run, planner, tasks, workers or os.cpu_count() or 1, report).work()
    for one in outcome.encoders:
        with share.one_part():
            share.end_part(f"embed {one.name}", one.rows)
    share.end_all_parts()
    write_embed_table(run)
    return outcome


def _say_nothing(*_: Any, **__: Any) -> None:
    pass


def make_tasks(encoders: Sequence[TileEncoder], spec: EmbedSpec) -> list[EncoderTask]:
    """Return a task an encoder, with batch sizes of which the largest is a multiple of each.

    Where they do not nest, all take the smallest: a block of tiles is cut into whole batches only.
    """
    sizes = [spec.batch_size or encoder.batch_size for encoder in encoders]
    if any(max(sizes) % size for size in sizes):
        sizes = [min(sizes)] * len(sizes)
    return [EncoderTask(encoder, spec, size) for encoder, size in zip(encoders, sizes, strict=True)]


class _Pipeline:
    """Reading threads, the encoder, the writing thread, and what flows between them."""

    def __init__(
        self, run: RunFolder, planner: SlidePlanner, tasks: Sequence[EncoderTask], workers: int, report: Report
    ) -> None:
        self._planner, self._tasks, self._workers = planner, tasks, workers
        self._stream = TileStream(planner.jobs(), workers)
        self._writer = FeatureWriter(run, planner, self._stream, report)
        self._encoding = _BusyTime()

    def work(self) -> EmbedOutcome:
        begun = time.perf_counter()
        try:
            with self._writer, ThreadPoolExecutor(_BATCHES_AT_ONCE, "encode") as pool, self._stream:
                # This thread never waits for a result: while the stream waits for slides that another
                # process works on, ours must be finished, or both would wait for each other.
                for event in self._stream:
                    if isinstance(event, SourceEnd):
                        self._writer.finish(event.source, event.error)
                    else:
                        self._encode(pool, event)
        finally:
            self._planner.stop()
        return self._outcome(time.perf_counter() - begun)

    def _encode(self, pool: ThreadPoolExecutor, block: TileBlock) -> None:
        job: SlideJob = block.source
        batches = [(track, *where) for track in job.tracks for where in track.batches_within(block.start, block.stop)]
        if job.failure is not None:
            self._stream.release(block)
            return
        job.begin()
        for number, (track, batch, first, last) in enumerate(batches, 1):
            pixels = block.pixels[first - block.start : last - block.start]
            self._encoding.enter()
            future = pool.submit(self._encoding.leave_after, track.task.encoder.embed, pixels)
            self._writer.store(EncodedBatch(job, track, batch, future, block if number == len(batches) else None))

    def _outcome(self, seconds: float) -> EmbedOutcome:
        load = {
            "reading": self._stream.reading_s / self._workers,
            "encoding": self._encoding.seconds,
            "writing": self._writer.writing_s,
        }
        shares = {stage: round(busy / seconds, 4) for stage, busy in load.items()}
        return EmbedOutcome([self._encoder_outcome(task) for task in self._tasks], seconds, shares)

    def _encoder_outcome(self, task: EncoderTask) -> EncoderOutcome:
        queue = self._planner.queues[task.name]
        rows = queue.rows()
        own = [row for row in rows if row["slide_id"] in self._planner.finished[task.name]]
        return EncoderOutcome(
            task.name,
            rows,
            tiles_encoded=sum(row.get("tiles_encoded", 0) for row in own),
            tiles_resumed=sum(row.get("tiles_resumed", 0) for row in own),
            slides_kept=queue.n_reused,
            slides_finished=frozenset(self._planner.finished[task.name]),
        )


class _BusyTime:
    """Lets few calls be under way at once, and measures the time in which at least one is."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._places = threading.BoundedSemaphore(_BATCHES_AT_ONCE)
        self._lock = threading.Lock()
        self._active = 0
        self._since_s = 0.0

    def enter(self) -> None:
        self._places.acquire()
        with self._lock:
            self._active += 1
            if self._active == 1:
                self._since_s = time.perf_counter()

    def leave_after(self, function: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
        try:
            return function(pixels)
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self.seconds += time.perf_counter() - self._since_s
            self._places.release()
