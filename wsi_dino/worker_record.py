"""What a process at work on a run tells of itself: small files that `wsi-dino status` reads from any machine."""

from __future__ import annotations

import atexit
import os
import platform
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wsi_dino import heartbeat, share
from wsi_dino.provenance import canonical_json, write_json_atomically, write_text_atomically
from wsi_dino.run_folder import RunFolder, safe_name

WORKERS, PLANS = "workers", "plans"
_SHOWN_IN_HAND = 8
_FORGOTTEN_AFTER_S = 24 * 3600.0

_lock = threading.Lock()
_of_run: dict[str, WorkerRecord] = {}


def launch_id() -> str:
    """Return what all workers of one launch share; "" outside of one."""
    return os.environ.get("WSI_DINO_LAUNCH", "")


def of_run(
    run: RunFolder, stage: str, fingerprints: Mapping[str, str | None], costs: Mapping[str, float] | None
) -> StageRecord:
    """Note what a stage is to do, and return where a queue tells what it does of it."""
    here = os.path.abspath(run.path)  # whatever folder the process goes to later
    with _lock:
        worker = _of_run.setdefault(here, WorkerRecord(RunFolder(Path(here))))
    worker.plan(stage, fingerprints, costs)
    return StageRecord(worker, stage)


def end_all() -> None:
    """This process's work is done: remove what it tells of itself."""
    with _lock:
        workers = list(_of_run.values())
        _of_run.clear()
    for worker in workers:
        worker.end()


class WorkerRecord:
    """The file of this process in one run; it is there from the first item on and goes with the process."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._path = run.state / WORKERS / f"{safe_name(platform.node() or 'host')}-{os.getpid()}.json"
        self._stages: dict[str, dict[str, int]] = {}
        self._in_hand: dict[tuple[str, str], float] = {}
        self._planned: dict[str, dict[str, list[Any]]] = {}
        self._lock = threading.Lock()
        self._is_begun = False

    def plan(self, stage: str, fingerprints: Mapping[str, str | None], costs: Mapping[str, float] | None) -> None:
        """Write the items of a stage, where they are not what is written there; None is a fingerprint not known yet."""
        known = costs or {}
        planned = self._planned.setdefault(stage, {})
        planned |= {key: [mark, known.get(key, 1.0)] for key, mark in fingerprints.items()}
        path = self._run.state / PLANS / f"{safe_name(stage)}.json"
        text = canonical_json({"stage": stage, "items": planned}) + "\n"
        try:
            is_written = path.read_text(encoding="utf-8") == text
        except OSError:
            is_written = False
        if not is_written:
            write_text_atomically(path, text)

    def note(self, stage: str, key: str, *, took: bool = False, status: str = "") -> None:
        """An item was taken, finished with a status, or given back."""
        heartbeat.note_progress()
        with self._lock:
            counts = self._stages.setdefault(stage, {"finished": 0, "failed": 0})
            if took:
                self._in_hand[stage, key] = time.monotonic()
            else:
                self._in_hand.pop((stage, key), None)
            if status:
                counts["failed" if status == "failed" else "finished"] += 1
            is_first, self._is_begun = not self._is_begun, True
        if is_first:
            self._begin()

    def _begin(self) -> None:
        _forget_old(self._run)
        self.write()
        heartbeat.beat_always(self, self.write)

    def write(self) -> None:
        """Tell how things are now; the file's date is the sign of life."""
        with self._lock:
            now = time.monotonic()
            held = sorted(self._in_hand.items(), key=lambda item: item[1])[:_SHOWN_IN_HAND]
            told = {
                "host": platform.node(), "pid": os.getpid(), "launch": launch_id(),
                "name": os.environ.get("WSI_DINO_WORKER", ""), "shard": str(share.current() or ""),
                "stages": {stage: dict(counts) for stage, counts in self._stages.items()},
                "in_hand": [{"stage": stage, "key": key, "for_s": round(now - since)} for (stage, key), since in held],
                "n_in_hand": len(self._in_hand),
                "progress_age_s": round(heartbeat.progress_age_s(), 1),
                "is_hanging": bool(self._in_hand) and heartbeat.progress_age_s() >= heartbeat.hang_s(),
                "beat_s": heartbeat.beat_s(),
            }  # fmt: skip
        if self._run.state.is_dir():  # a run that was removed does not come back for this
            write_json_atomically(self._path, told)

    def end(self) -> None:
        """Remove the file."""
        heartbeat.stop_beat(self)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class StageRecord:
    """A queue's way to tell of its items."""

    def __init__(self, worker: WorkerRecord, stage: str) -> None:
        self._worker, self._stage = worker, stage

    def took(self, key: str) -> None:
        """An item is in hand."""
        self._worker.note(self._stage, key, took=True)

    def finished(self, key: str, status: str) -> None:
        """Its row is written."""
        self._worker.note(self._stage, key, status=status)

    def gave_back(self, key: str) -> None:
        """It was not finished here."""
        self._worker.note(self._stage, key)


atexit.register(end_all)


def _forget_old(run: RunFolder) -> None:
    """Remove what processes left that were killed long ago."""
    with suppress(OSError):
        for path in (run.state / WORKERS).glob("*.json"):
            if time.time() - path.stat().st_mtime > _FORGOTTEN_AFTER_S:
                path.unlink(missing_ok=True)
