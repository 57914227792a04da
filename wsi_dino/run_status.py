"""How far a run is, who works on it and what failed: read from its files alone, from any machine."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_dino.heartbeat import lease_s
from wsi_dino.run_folder import RunFolder, safe_name
from wsi_dino.worker_record import PLANS, WORKERS

_READERS = 16
_RATE_WINDOW_S = 600.0
_STATES = ("done", "empty", "failed")


@dataclass(frozen=True)
class StageStatus:
    """One stage of the latest request.

    Attributes:
        counts: items ``done``, ``empty`` and ``failed``.
        left: items that nobody has finished.
        share_done: of the whole cost, from 0 to 1; every item costs the same where costs are not known.
        left_s: seconds until the rest is done at the pace of the last ten minutes; None when that cannot be told.
    """

    stage: str
    items: int
    counts: Mapping[str, int]
    left: int
    share_done: float
    left_s: float | None


@dataclass(frozen=True)
class WorkerStatus:
    """A process that has left a record.

    Attributes:
        state: ``working``, ``hanging`` (it lives, but its work does not move on) or ``lost`` (no sign of life).
        silent_s: since its last sign of life, by the clocks of this machine and of the file server.
        record: as it wrote it.
    """

    name: str
    state: str
    silent_s: float
    record: Mapping[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """All of it; `failures` has ``stage``, ``item``, ``status`` and ``reason``."""

    stages: list[StageStatus]
    workers: list[WorkerStatus]
    failures: list[dict[str, str]] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "stages": [vars(stage) for stage in self.stages],
            "workers": [
                {"name": one.name, "state": one.state, "silent_s": round(one.silent_s, 1), **one.record}
                for one in self.workers
            ],
            "failures": self.failures,
            "is_done": bool(self.stages) and not any(stage.left for stage in self.stages),
        }


class RunReader:
    """Reads the status of one run again and again; a row that has not changed is not read twice."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._rows: dict[Path, tuple[int, dict[str, Any]]] = {}

    def read(self) -> RunStatus:
        """Return how things are now."""
        failures: list[dict[str, str]] = []
        stages = [self._stage(plan, failures) for plan in _plans(self._run)]
        return RunStatus(stages, read_workers(self._run), failures)

    def _stage(self, plan: Mapping[str, Any], failures: list[dict[str, str]]) -> StageStatus:
        stage, items = str(plan["stage"]), plan["items"]
        paths = {self._run.row_path(stage, key): key for key in items}
        times = self._update(stage, paths)
        counts: Counter[str] = Counter()
        finished: list[tuple[int, float]] = []
        for path in sorted(times):
            row, (mark, cost) = self._rows[path][1], items[paths[path]]
            status = str(row.get("status"))
            if (mark is not None and row.get("fingerprint") != mark) or status not in _STATES:
                continue
            counts[status] += 1
            finished.append((times[path], float(cost)))
            if status != "done":
                reason = str(row.get("reason") or row.get("message") or "")
                failures.append({"stage": stage, "item": paths[path], "status": status, "reason": reason})
        whole = sum(float(cost) for _, cost in items.values())
        done = sum(cost for _, cost in finished)
        share_done = done / whole if whole else len(finished) / max(1, len(items))
        left = len(items) - sum(counts.values())
        return StageStatus(stage, len(items), dict(counts), left, share_done, _left_s(finished, whole - done))

    def _update(self, stage: str, wanted: Mapping[Path, str]) -> dict[Path, int]:
        """Read what is new of the rows of a stage; return when each was written, in ns."""
        times: dict[Path, int] = {}
        folder = self._run.state / safe_name(stage)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = folder / entry.name
                    if path in wanted:
                        times[path] = entry.stat().st_mtime_ns
        except OSError:
            return {}
        new = [path for path, at in times.items() if self._rows.get(path, (0,))[0] != at]
        with ThreadPoolExecutor(_READERS) as pool:  # a network file system answers many at once
            for path, row in zip(new, pool.map(_read_json, new), strict=True):
                self._rows[path] = (times[path], row)
        return times


def read_workers(run: RunFolder) -> list[WorkerStatus]:
    """Return the processes that are at work on a run, and those that ended without a word."""
    found = []
    for path in sorted((run.state / WORKERS).glob("*.json")):
        try:
            silent_s = max(0.0, time.time() - path.stat().st_mtime)
        except OSError:
            continue  # it has just ended
        record = _read_json(path)
        is_lost = silent_s > 8 * float(record.get("beat_s") or lease_s() / 8)
        state = "lost" if is_lost else "hanging" if record.get("is_hanging") else "working"
        found.append(WorkerStatus(path.stem, state, silent_s, record))
    return found


def worker_path(run: RunFolder, host: str, pid: int) -> Path:
    """Return where the process `pid` of `host` tells of itself."""
    return run.state / WORKERS / f"{safe_name(host or 'host')}-{pid}.json"


def _plans(run: RunFolder) -> Iterator[dict[str, Any]]:
    paths = list((run.state / PLANS).glob("*.json"))
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        plan = _read_json(path)
        if isinstance(plan.get("items"), dict) and plan["items"]:
            yield plan


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _left_s(finished: list[tuple[int, float]], left: float) -> float | None:
    """Return how long the rest takes at the pace of the last minutes before the latest item."""
    if left <= 0:
        return 0.0
    if len(finished) < 2:
        return None
    finished = sorted(finished)
    since = max(finished[0][0], finished[-1][0] - int(_RATE_WINDOW_S * 1e9))
    seconds = (finished[-1][0] - since) / 1e9
    cost = sum(cost for at, cost in finished if at > since)
    return left * seconds / cost if cost and seconds > 0 else None
