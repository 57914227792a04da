"""`--launcher local`: workers on this machine, one for each GPU, or several of one thread each on its CPUs."""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import replace
from pathlib import Path

from wsi_dino.cli.launchers.engine import Settings
from wsi_dino.cli.launchers.task import WorkerEnd, WorkerTask, run_worker

_MOST_AT_ONCE = 256


class LocalSettings(Settings):
    """See `Settings`.

    Attributes:
        gpus: GPUs to use; -1: all that can be seen.
    """

    gpus: int = -1


class LocalEngine:
    """A thread waits for each worker's process."""

    def __init__(self, settings: LocalSettings) -> None:
        self._devices = _visible_gpus(settings.gpus)
        self._ended: queue.SimpleQueue[tuple[WorkerTask, WorkerEnd]] = queue.SimpleQueue()
        self._free: list[str] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._room = threading.Semaphore(_MOST_AT_ONCE)
        self._stopping = threading.Event()
        self._n_started = 0

    def n_workers(self) -> int:
        """As many as GPUs; without one as many as cores."""
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return len(self._devices) or n_cores or 1

    def start(self, task: WorkerTask) -> None:
        """As `Engine.start`."""
        # a daemon: should this process end without `stop`, nothing waits for the worker, which then ends with it
        thread = threading.Thread(target=self._wait_for, args=(self._placed(task), task), name=task.name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wait_for(self, placed: WorkerTask, task: WorkerTask) -> None:
        try:
            with self._room:
                if not self._stopping.is_set():
                    self._ended.put((task, run_worker(placed, self._stopping)))
        except Exception as error:  # of starting it: a full disk, no memory for one more process
            self._ended.put((task, WorkerEnd(3, str(error))))

    def _placed(self, task: WorkerTask) -> WorkerTask:
        """Return the task with a GPU of its own, in turn; on a CPU with one thread in numerical libraries."""
        with self._lock:
            number, self._n_started = self._n_started, self._n_started + 1
        if self._devices:
            own = {"CUDA_VISIBLE_DEVICES": self._devices[number % len(self._devices)]}
        else:
            own = {"OMP_NUM_THREADS": "1"} if not task.writes_results else {}
        return replace(task, environment={**task.environment, **own})

    def flush(self) -> None:
        """Nothing waits."""

    def ended(self) -> list[tuple[WorkerTask, WorkerEnd]]:
        """As `Engine.ended`."""
        found = []
        while not self._ended.empty():
            found.append(self._ended.get())
        return found

    def stop(self) -> None:
        """End what still runs, and wait for that."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def n_gpus() -> int:
    """Return how many GPUs torch can use; where the system has none, torch is not asked."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _visible_gpus(wanted: int) -> list[str]:
    """Return what `CUDA_VISIBLE_DEVICES` is to be for each worker; the scheduler's own choice is kept."""
    n_seen = n_gpus()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = named[:n_seen] if named else [str(number) for number in range(n_seen)]
    return names if wanted < 0 else names[:wanted]
