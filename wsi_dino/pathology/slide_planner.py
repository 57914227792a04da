"""Which slides of a run still need which encoder, and opening them one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import FeatureFileError, SlideError, StorageError, TileGridError
from wsi_dino.feature_file import read_feature_file, read_provenance
from wsi_dino.item_queue import ClaimedItem, Item, ItemQueue, LateItem
from wsi_dino.pathology.embed_spec import EncoderTask, feature_path, tile_path
from wsi_dino.pathology.embedded_slides import IsIntact, done_row
from wsi_dino.pathology.journal import EncodingJournal, leave_to_former_owner
from wsi_dino.pathology.slide import Slide, open_slide
from wsi_dino.pathology.slide_job import FailedSlide, SlideJob, Track
from wsi_dino.pathology.slide_paths import SlidePaths, check_unchanged
from wsi_dino.pathology.stain import StainReference
from wsi_dino.pathology.tile_grid import TileGrid, read_tile_grid
from wsi_dino.pathology.tile_rows import tile_rows
from wsi_dino.provenance import environment, file_sha256, fingerprint
from wsi_dino.run_folder import RunFolder, safe_name

Job = SlideJob | FailedSlide


def _item(task: EncoderTask, slide_id: str, tiles_sha256: Callable[[], str]) -> Item:
    return LateItem(slide_id, lambda: task.item_fingerprint(tiles_sha256()))


class SlidePlanner:
    """Yields the slides to embed, opened, each for all encoders that still miss it.

    Args:
        run: the run folder, with tiles.
        tasks: the encoders.
        paths: finds slide files.
        stain: the reference for stain normalisation, or None.
        report: told ``report(n_tiles)`` of tiles that need no work.
        only: slides to embed; None for all of the run.

    Attributes:
        queues: the items of each encoder.
        finished: slide_ids that were finished here, for each encoder.
    """

    def __init__(
        self,
        run: RunFolder,
        tasks: Sequence[EncoderTask],
        paths: SlidePaths,
        stain: StainReference | None,
        report: Callable[..., None],
        only: Collection[str] | None = None,
    ) -> None:
        self._run, self._tasks, self._paths, self._stain, self._report = run, tasks, paths, stain, report
        self._rows = tile_rows(run, only)
        items = self._items()
        costs = self._rows.tiles
        self.queues = {
            task.name: ItemQueue(
                run, task.stage, items[task.name], IsIntact(run, task, self._rows, paths, report),
                costs=costs, is_divided=True,
            )
            for task in tasks
        }  # fmt: skip
        self.finished: dict[str, set[str]] = {task.name: set() for task in tasks}
        self._open_jobs: set[Job] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def n_tiles(self) -> int:
        """Tiles of all these slides, all encoders together."""
        return len(self._tasks) * int(sum(self._rows.tiles.values()))

    @property
    def slide_ids(self) -> list[str]:
        """Ids of all these slides."""
        return list(self._rows)

    def _items(self) -> dict[str, list[Item]]:
        hashes = {slide_id: cache(partial(self._tiles_sha256, slide_id)) for slide_id in self._rows}
        return {task.name: [_item(task, slide_id, each) for slide_id, each in hashes.items()] for task in self._tasks}

    def _tiles_sha256(self, slide_id: str) -> str:
        row = self._rows[slide_id]
        path = tile_path(self._run, str(row["slide_id"]))
        if row.get("status") != "done" or not path.is_file():
            return f"{row.get('status')}: {row.get('fingerprint')}"
        return file_sha256(path)

    def jobs(self) -> Iterator[Job]:
        """Yield opened slides; waits where another process still works on the last of them.

        Raises:
            StorageError: a journal cannot be written.
        """
        for task in self._tasks:
            while (claimed := self.queues[task.name].take()) is not None:
                claims = [(task, claimed), *self._others(task, claimed.item.key)]
                job = self._planned(claimed.item.key, claims)
                if job is not None and self._note(job):
                    yield job

    def _others(self, first: EncoderTask, slide_id: str) -> Iterator[tuple[EncoderTask, ClaimedItem]]:
        for task in self._tasks:
            if task is not first and (claimed := self.queues[task.name].take_if_free(slide_id)) is not None:
                yield task, claimed

    def _planned(self, slide_id: str, claims: list[tuple[EncoderTask, ClaimedItem]]) -> Job | None:
        try:
            return self._plan(slide_id, claims)
        except StorageError:
            for task, claimed in claims:
                self.queues[task.name].give_back(claimed)
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, SlideError | TileGridError) else f"{type(error).__name__}: {error}"
            return FailedSlide(slide_id, claims, "failed", reason)

    def _plan(self, slide_id: str, claims: list[tuple[EncoderTask, ClaimedItem]]) -> Job | None:
        row = self._rows[slide_id]
        if row.get("status") == "empty":
            return FailedSlide(slide_id, claims, "empty", str(row.get("reason") or "no tissue was found"))
        if row.get("status") != "done":
            return FailedSlide(slide_id, claims, "failed", f"not tiled: {row.get('reason') or row.get('status')}")
        grid = read_tile_grid(tile_path(self._run, slide_id))
        if len(grid) == 0:
            return FailedSlide(slide_id, claims, "empty", "no tile is in its tile file")
        path, missing = self._path(row)
        if path is not None:
            check_unchanged(path, grid)
        claims = [pair for pair in claims if not self._is_written(grid, *pair)]
        if not claims:
            return None
        if path is None:
            raise missing or SlideError(f"Opening slide {slide_id}: there is no file.")
        slide = open_slide(path, slide_id=slide_id, backend=claims[0][0].spec.backend)
        try:
            return self._job(slide, grid, claims)
        except BaseException:
            slide.close()
            raise

    def _path(self, row: Mapping[str, Any]) -> tuple[Path | None, SlideError | None]:
        try:
            return self._paths.find(row), None
        except SlideError as error:
            return None, error

    def _is_written(self, grid: TileGrid, task: EncoderTask, claimed: ClaimedItem) -> bool:
        """Whether a process that was killed after writing the file had only left its row unwritten."""
        path = feature_path(self._run, task.name, grid.slide_id)
        try:
            if read_provenance(path).get("fingerprint") != claimed.item.fingerprint:
                return False
            file = read_feature_file(path, verify=True)
        except FeatureFileError:
            return False
        backend = file.provenance.get("slide", {}).get("backend")
        row = done_row(task, grid, backend, slide_path=None, seconds=0.0, n_encoded=0, n_resumed=len(grid))
        self.finish(task, claimed, row)
        self._report(len(grid))
        return True

    def _job(self, slide: Slide, grid: TileGrid, claims: list[tuple[EncoderTask, ClaimedItem]]) -> SlideJob:
        tracks: list[Track] = []
        try:
            for task, claimed in claims:
                tracks.append(Track(task, claimed, self._journal(task, claimed, grid, slide.backend)))
            job = SlideJob(slide, grid, tracks)
            if self._stain is not None:
                job.normalise, job.stain_fit = self._stain.fit_slide(slide, grid)
            self._report(sum(track.n_resumed for track in tracks))
            return job
        except BaseException:
            for track in tracks:
                track.journal.close()
            raise

    def _journal(self, task: EncoderTask, claimed: ClaimedItem, grid: TileGrid, backend: str) -> EncodingJournal:
        # beside the request also what this machine chose: rows of unlike machines are not mixed in one file
        resolved = (task.encoder.identity(), task.batch_size, backend, environment())
        path = self._run.state / "journals" / safe_name(task.name) / f"{safe_name(grid.slide_id)}.journal"
        key = fingerprint(claimed.item.fingerprint, grid.slide_fingerprint, *resolved)
        dtype = np.dtype(task.spec.store_dtype)
        if claimed.claim.after_expiry:
            leave_to_former_owner(path)
        return EncodingJournal(path, key, task.encoder.embed_dim, dtype, task.batch_size)

    # what is in hand ---------------------------------------------------------------------------
    def _note(self, job: Job) -> bool:
        with self._lock:
            if not self._stopped:
                self._open_jobs.add(job)
                return True
        self._abandon(job)
        return False

    def finish(self, task: EncoderTask, claimed: ClaimedItem, row: dict[str, Any]) -> None:
        """Store the row of a slide and give up its claim."""
        self.finished[task.name].add(claimed.item.key)
        self.queues[task.name].finish(claimed, row)

    def forget(self, job: Job) -> None:
        """A job is finished: its rows are written and its claims released."""
        with self._lock:
            self._open_jobs.discard(job)
        job.close()

    def stop(self) -> None:
        """Give back everything that is unfinished; journals stay."""
        with self._lock:
            self._stopped = True
            jobs, self._open_jobs = self._open_jobs, set()
        for job in jobs:
            self._abandon(job)

    def _abandon(self, job: Job) -> None:
        job.close()
        pairs = job.claims if isinstance(job, FailedSlide) else [(track.task, track.claimed) for track in job.tracks]
        for task, claimed in pairs:
            if claimed.item.key not in self.finished[task.name]:
                self.queues[task.name].give_back(claimed)
