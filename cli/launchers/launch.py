"""Workers on one run, from their start to the results: the same for every engine."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_dino.cli import console
from wsi_dino.cli.interrupts import ctrl_c_waits
from wsi_dino.cli.launchers.engine import Engine, Settings
from wsi_dino.cli.launchers.registry import LauncherName, make_engine, read_settings
from wsi_dino.cli.launchers.task import RESULTS, WorkerEnd, WorkerTask
from wsi_dino.errors import ConfigError
from wsi_dino.run_folder import RunFolder
from wsi_dino.run_status import RunReader

_POLL_S = 0.2
_LOOK_EVERY_S = 2.0
_TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class Launch:
    """A command to be worked on by several workers.

    Attributes:
        launcher: which engine.
        settings: of the engine, as given in wsi-dino.yaml and on the command line.
        arguments: of ``wsi-dino``, without those about launching.
        run: the run folder.
        worker_arguments: added for workers, not for the one that writes the results.
        share_cores: workers divide the cores of this machine.
    """

    launcher: LauncherName
    settings: Mapping[str, Any]
    arguments: tuple[str, ...]
    run: Path
    worker_arguments: tuple[str, ...] = ()
    share_cores: bool = False


def carry_out(launch: Launch) -> WorkerEnd:
    """Start the workers, wait for them, and let a last one write the results from what they left.

    Each works on the same run as an ordinary process: claims divide the work, so a worker that is lost costs what it
    had in hand, and a second launch by mistake only helps. A lost worker is started anew.

    Raises:
        ConfigError: settings are wrong, the engine is not there, or every worker refused the command.
    """
    settings = read_settings(launch.launcher, launch.settings)
    engine = make_engine(launch.launcher, settings)
    n_workers = settings.workers or engine.n_workers()
    session = _Session(launch, settings, engine, n_workers, secrets.token_hex(6))
    try:
        console.say(
            f"{n_workers} workers by --launcher {launch.launcher}; `wsi-dino status {launch.run}` tells of them"
        )
        session.work()
        return session.results()
    except KeyboardInterrupt:
        console.say("interrupted: the workers are told to end")
        raise
    finally:
        with ctrl_c_waits():
            engine.stop()


@dataclass
class _Session:
    launch: Launch
    settings: Settings
    engine: Engine
    n_workers: int
    mark: str
    refusals: list[str] = field(default_factory=list)
    n_lost: int = 0

    def task(self, name: str, extra: tuple[str, ...] = ()) -> WorkerTask:
        run = self.launch.run.absolute()
        log = run / ".state" / "logs" / f"{self.mark}-{name}.log"
        sharing = {"WSI_DINO_PROCESSES": str(self.n_workers)} if self.launch.share_cores and name != RESULTS else {}
        return WorkerTask(
            name, (*self.launch.arguments, *extra), os.getcwd(), str(run), str(log),
            environment={"WSI_DINO_LAUNCH": self.mark, "WSI_DINO_WORKER": name, **sharing},
            setup=tuple(getattr(self.settings, "setup", ())), container=str(getattr(self.settings, "container", "")),
        )  # fmt: skip

    def work(self) -> None:
        """Run the workers until each has come to the end of the work."""
        tasks = []
        for number in range(1, self.n_workers + 1):
            shard = ("--shard", f"{number}/{self.n_workers}+")
            tasks.append(self.task(f"w{number}", (*self.launch.worker_arguments, *shard)))
        self._start(tasks)
        running = {task.name: task for task in tasks}
        with console.progress("run", unit="items") as progress:
            view = _View(RunReader(RunFolder(self.launch.run)), progress)
            while running:
                for task, end in self.engine.ended():
                    running.pop(task.name, None)
                    if self._should_retry(task, end):
                        running[task.name] = task
                        self._start([task])
                view.update(len(running))
                time.sleep(_POLL_S)
            view.update(0, now=True)
        if len(self.refusals) == self.n_workers:
            raise ConfigError(self.refusals[0])

    def _start(self, tasks: Sequence[WorkerTask]) -> None:
        with ctrl_c_waits():  # until the engine knows them all, and can end them
            for task in tasks:
                self.engine.start(task)
            self.engine.flush()

    def _should_retry(self, task: WorkerTask, end: WorkerEnd) -> bool:
        if end.code == 2:
            self.refusals.append(_last_error(Path(task.log)) or f"worker {task.name} refused the command: {task.log}")
            console.say(f"worker {task.name} refused: {self.refusals[-1]}")
        if not end.is_lost:
            return False
        self.n_lost += 1
        again = self.n_lost <= self.settings.retries * self.n_workers
        then = "it is started anew" if again else "it is not started again"
        console.say(f"worker {task.name} on {end.host or '?'} {end.how}; {then}. What it said: {task.log}")
        return again

    def results(self) -> WorkerEnd:
        """Run the same command once more: it finds the work done and writes tables and reports."""
        task = self.task(RESULTS)
        for _ in range(self.settings.retries + 1):
            self._start([task])
            while not (ended := self.engine.ended()):
                time.sleep(_POLL_S)
            if not ended[0][1].is_lost:
                break
            console.say(f"the worker that writes the results {ended[0][1].how}: {task.log}")
        sys.stderr.write(_read(Path(task.log)))
        return ended[0][1]


class _View:
    """One bar over all workers."""

    def __init__(self, reader: RunReader, progress: console.Progress) -> None:
        self._reader, self._progress = reader, progress
        self._shown, self._next_s = 0, 0.0

    def update(self, n_running: int, *, now: bool = False) -> None:
        began = time.monotonic()
        if began < self._next_s and not now:
            return
        status = self._reader.read()
        total = sum(stage.items for stage in status.stages)
        done = total - sum(stage.left for stage in status.stages)
        hanging = sum(one.state == "hanging" for one in status.workers)
        text = f"{n_running} workers" + (f", {hanging} hanging" if hanging else "")
        text += f", {len(status.failures)} failed or empty" if status.failures else ""
        self._progress(done - self._shown, total=total, text=text)
        self._shown = done
        took = time.monotonic() - began  # on a slow file system the look itself must not become the load
        self._next_s = time.monotonic() + max(_LOOK_EVERY_S, 20 * took)


def _read(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _last_error(log: Path) -> str:
    text = _read(log)[-_TAIL_CHARACTERS:]
    _, found, message = text.rpartition("error: ")
    return message.strip() if found else text.strip()
