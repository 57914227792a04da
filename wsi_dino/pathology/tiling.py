"""All slides of a run: each tiled once, whatever is killed, resumed or started twice."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError, SlideError, StorageError, TileGridError, WsiDinoError
from wsi_dino.item_queue import Item, ItemQueue, LateItem
from wsi_dino.pathology.contours import is_edited, write_contours
from wsi_dino.pathology.discovery import SlideSource
from wsi_dino.pathology.slide_tiler import TiledSlide, TileRequest, tile_slide
from wsi_dino.pathology.thumbnail import write_thumbnail
from wsi_dino.pathology.tile_grid import TileGrid, read_tile_grid, write_tile_grid
from wsi_dino.provenance import remove_stale_temporaries, slide_fingerprint, write_text_atomically
from wsi_dino.run_folder import RunFolder
from wsi_dino.share import end_part

STAGE = "tile"
COLUMNS = (
    "slide_id", "status", "reason", "path", "mpp_asked", "mpp_found", "mpp_source", "mpp_level0", "level",
    "tiles", "tissue_mm2", "seconds", "backend",
)  # fmt: skip
_JOIN_S = 0.1

Report = Callable[..., None]


def tile_slides(
    sources: Sequence[SlideSource],
    run: RunFolder,
    request: TileRequest,
    *,
    workers: int = 0,
    progress: Report | None = None,
) -> list[dict[str, Any]]:
    """Tile every slide and write ``tiles/``, ``contours/``, ``thumbnails/`` and ``tiles.csv`` of `run`.

    A slide that is finished with the same request is left as it is. What goes wrong with one slide is
    its row (``status`` failed, with the reason) and no trouble for the others.

    Args:
        sources: the slides; ids are unique.
        run: the run folder.
        request: what is asked of every slide.
        workers: threads; 0 = one for each core.
        progress: told of each finished slide with ``progress(1, text=slide_id)``.

    Returns:
        One row a slide, in the order of `sources`: `COLUMNS` and ``fingerprint``.

    Raises:
        PartDone: this process has a part of the slides (`share`), and it is done.
        ConfigError: the segmenter is not installed.
        StorageError: the disk is full or the run folder cannot be written; finished slides are kept.
    """
    check_segmenter(request.tissue.segmenter)
    for folder in (run.tiles, run.contours, run.thumbnails):
        remove_stale_temporaries(folder)
    workers = min(workers or os.cpu_count() or 1, max(1, len(sources)))
    job = _Job(sources, run, request, workers, progress or _say_nothing)
    job.run_threads(workers)
    rows = job.queue.rows()
    end_part(STAGE, rows)
    run.write_table(run.path / "tiles.csv", _with_earlier(rows, run), COLUMNS)
    return rows


def check_segmenter(segmenter: str) -> None:
    """Raise ConfigError when `segmenter` needs a package that is not installed."""
    if segmenter != "clam":
        from wsi_dino.pathology.tissue_tiatoolbox import require_tiatoolbox

        require_tiatoolbox()


def _say_nothing(advance: float = 0, **_: Any) -> None:
    pass


def _with_earlier(rows: list[dict[str, Any]], run: RunFolder) -> list[dict[str, Any]]:
    """Add the rows of slides that this command was not asked for but whose tiles are in the run; sorted."""
    named = {row["slide_id"] for row in rows}
    earlier = [row for row in run.rows(STAGE) if row.get("slide_id") not in named]
    kept = [row for row in earlier if (run.tiles / f"{row.get('slide_id')}.h5").is_file()]
    return sorted([*rows, *kept], key=lambda row: str(row["slide_id"]))


class _Job:
    """The threads of one call of `tile_slides` and what they share."""

    def __init__(
        self, sources: Sequence[SlideSource], run: RunFolder, request: TileRequest, workers: int, progress: Report
    ) -> None:
        self._run, self._request, self._progress = run, request, progress
        self._sources = {source.slide_id: source for source in sources}
        self._contents = {key: cache(partial(_content, source)) for key, source in self._sources.items()}
        items = [LateItem(key, partial(self._fingerprint, key)) for key in self._sources]
        costs = {source.slide_id: _size(source.path) for source in sources}
        self.queue = ItemQueue(run, STAGE, items, self._is_intact, costs=costs, is_divided=True)
        self._stop = threading.Event()
        self._fatal: list[BaseException] = []

    def _fingerprint(self, key: str) -> str:
        return self._request.fingerprint_of(key, self._contents[key]())

    def run_threads(self, count: int) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                threads[-1].join(_JOIN_S)
                threads = [thread for thread in threads if thread.is_alive()] or threads[:1]
        except KeyboardInterrupt:
            self._stop.set()
            raise
        if self._fatal:
            raise self._fatal[0]
        self._progress(self.queue.n_reused)

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and (claimed := self.queue.take()) is not None:
                try:
                    row = self._row(self._sources[claimed.item.key])
                except BaseException:
                    self.queue.give_back(claimed)
                    raise
                self.queue.finish(claimed, row)
                self._progress(1, text=claimed.item.key)
        except BaseException as error:
            self._fatal.append(error)
            self._stop.set()

    def _row(self, source: SlideSource) -> dict[str, Any]:
        start = time.perf_counter()
        row: dict[str, Any] = {
            "slide_id": source.slide_id,
            "status": "failed",
            "reason": "",
            "path": os.path.abspath(source.path),
            "mpp_asked": self._request.tiling.asked,
        }
        try:
            row |= self._tile(source)
        except (StorageError, ConfigError):
            raise
        except WsiDinoError as error:
            row["reason"] = str(error).removeprefix(f"{source.slide_id}: ")
        except Exception as error:
            row["reason"] = f"unexpected {type(error).__name__}: {error} (details: {self._keep_trace(source)})"
        if row["status"] == "failed":
            self._remove_stale(source.slide_id)
        row["seconds"] = round(time.perf_counter() - start, 3)
        return row

    def _tile(self, source: SlideSource) -> dict[str, Any]:
        name = source.slide_id
        contours = self._run.contours / f"{name}.geojson"
        given = self._request.contours_of(name)
        is_given_in_place = given is not None and given.resolve() == contours.resolve()
        if not is_given_in_place and is_edited(contours):
            raise SlideError(
                f"{name}: {contours} was edited by hand and would be overwritten. Give --contours "
                f"{contours.parent} to use it, or move it away to segment this slide again."
            )
        tiled = tile_slide(source, self._request, self._contents[name]())
        if not is_given_in_place:
            write_contours(contours, tiled.placed.tissue)
        write_thumbnail(self._run.thumbnails / f"{name}.jpg", tiled.thumbnail)
        write_tile_grid(self._run.tiles / f"{name}.h5", tiled.grid)
        return _outcome(tiled)

    def _remove_stale(self, name: str) -> None:
        """Remove tiles of an earlier request, so that nothing takes them for what was asked for now."""
        for path in (self._run.tiles / f"{name}.h5", self._run.thumbnails / f"{name}.jpg"):
            path.unlink(missing_ok=True)

    def _keep_trace(self, source: SlideSource) -> Path:
        path = self._run.row_path("tracebacks", f"{STAGE}-{source.slide_id}").with_suffix(".txt")
        write_text_atomically(path, traceback.format_exc())
        return path

    def _is_intact(self, item: Item, row: dict[str, Any]) -> bool:
        name = item.key
        pictures = (self._run.contours / f"{name}.geojson", self._run.thumbnails / f"{name}.jpg")
        try:
            grid = read_tile_grid(self._run.tiles / f"{name}.h5")
        except TileGridError:
            return False
        same = grid.fingerprint == row.get("grid_fingerprint") and len(grid) == row.get("tiles")
        return same and all(path.is_file() for path in pictures)


def _content(source: SlideSource) -> str:
    """Return the fingerprint of a slide's content; of one that cannot be read, what the system says instead."""
    try:
        return slide_fingerprint(source.path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _size(path: Path) -> float:
    """Return bytes, which is what is known of the cost of a slide before it is opened."""
    try:
        return float(path.stat().st_size)
    except OSError:
        return 0.0


def _outcome(tiled: TiledSlide) -> dict[str, Any]:
    grid: TileGrid = tiled.grid
    return {
        "status": "done" if len(grid) else "empty",
        "reason": tiled.placed.empty_reason,
        "mpp_found": _mean(grid.mpp_found_xy),
        "mpp_source": grid.mpp_source,
        "mpp_level0": _mean(grid.mpp_xy),
        "level": grid.level,
        "tiles": len(grid),
        "tissue_mm2": tiled.placed.tissue_mm2,
        "backend": tiled.backend,
        "grid_fingerprint": grid.fingerprint,
    }


def _mean(pair: tuple[float, float] | None) -> float | None:
    return None if pair is None else round((pair[0] + pair[1]) / 2, 6)
