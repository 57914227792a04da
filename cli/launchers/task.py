"""One worker of a launch: an ordinary command in a process of its own, watched; the same for every engine."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from wsi_dino.cli.interrupts import ctrl_c_waits, hear_ctrl_c

_POLL_S = 0.5
PARENT_PIPE = "WSI_DINO_PARENT_PIPE"
RESULTS = "results"
_GRACE_S = 10.0


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is to do; plain values, so that it can be sent to another machine.

    Attributes:
        name: of the worker, ``w1`` ...; the last one, which writes the results, is `RESULTS`.
        arguments: of ``wsi-dino``.
        folder: where the command runs.
        run: the run folder, absolute.
        log: what it says goes here.
        environment: added to that of the engine's process.
        setup: shell lines that run before the command, e.g. ``module load cuda``.
        container: words before the command, e.g. ``apptainer exec --nv image.sif``.
    """

    name: str
    arguments: tuple[str, ...]
    folder: str
    run: str
    log: str
    environment: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    container: str = ""

    @property
    def writes_results(self) -> bool:
        """Whether it comes last and alone; it may seem to hang, and whoever waits for the results decides of that."""
        return self.name == RESULTS

    @property
    def command(self) -> list[str]:
        """Words to start."""
        import shlex

        words = [sys.executable, "-m", "wsi_dino.cli", *self.arguments]
        if self.container:
            words = [*shlex.split(self.container), "wsi-dino", *self.arguments]
        if self.setup:
            return ["bash", "-c", "\n".join(["set -e", *self.setup, f"exec {shlex.join(words)}"])]
        return words


@dataclass(frozen=True)
class WorkerEnd:
    """How a worker ended.

    Attributes:
        code: exit code; negative: the signal that killed it.
        stdout: what it printed there.
        hung: it was ended because its work did not move on.
        host: where it ran.
    """

    code: int
    stdout: str = ""
    hung: bool = False
    host: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether it ended in a way that says nothing about its work: another try is worth it."""
        return self.code not in (0, 1, 2, 130)

    @property
    def how(self) -> str:
        """In words."""
        if self.hung:
            return "did not move on and was ended"
        return f"was killed by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"


def run_worker(task: WorkerTask, stopping: threading.Event | None = None) -> WorkerEnd:
    """Run the command and wait for it; end it when it hangs, and let it end with this process.

    Args:
        task: what to run.
        stopping: ends the worker when it is set.
    """
    log = Path(task.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said, log.with_suffix(".out").open("w+b") as printed, ExitStack() as leaving:
        with ctrl_c_waits():
            process = start_bound(task.command, task.environment, printed, said, task.folder)
            leaving.callback(stop_bound, process)
        hung = _watch(process, task, stopping or threading.Event())
        printed.seek(0)
        stdout = printed.read().decode(errors="replace")
    return WorkerEnd(process.returncode, stdout, hung, platform.node())


def start_bound(
    command: Sequence[str], environment: Mapping[str, str], stdout: IO[Any], stderr: IO[Any], folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of ours in a session of its own, which ends with this process, however that ends.

    Its standard input is a pipe that only this process holds: when this process is gone, it reads the end of it.
    """
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment, PARENT_PIPE: "1"}, stdin=subprocess.PIPE,
        stdout=stdout, stderr=stderr, start_new_session=True,
    )  # fmt: skip


def _watch(process: subprocess.Popen[bytes], task: WorkerTask, stopping: threading.Event) -> bool:
    from wsi_dino.heartbeat import beat_s
    from wsi_dino.run_folder import RunFolder
    from wsi_dino.run_status import worker_path

    record = _Record(worker_path(RunFolder(Path(task.run)), platform.node(), process.pid))
    looked_s = time.monotonic()
    while True:
        try:
            process.wait(_POLL_S)
            return False
        except subprocess.TimeoutExpired:
            pass
        if stopping.is_set():
            stop_bound(process)
            return False
        if time.monotonic() - looked_s >= beat_s():
            looked_s = time.monotonic()
            if not task.writes_results and record.tells_of_hanging():
                process.kill()
                process.wait()
                return True


class _Record:
    """What a worker tells of itself, looked at again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written, self._since_s = 0, time.monotonic()

    def tells_of_hanging(self) -> bool:
        """Whether the worker says that its work stands still, or has said nothing for a whole lease."""
        from wsi_dino.heartbeat import lease_s

        try:
            written = self._path.stat().st_mtime_ns
            told = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False  # it has not begun
        if written != self._written:
            self._written, self._since_s = written, time.monotonic()
        return bool(told.get("is_hanging")) or time.monotonic() - self._since_s > lease_s()


def stop_bound(process: subprocess.Popen[bytes], grace_s: float = _GRACE_S) -> None:
    """End what `start_bound` started, if it runs: politely, so that it gives back what it holds, then for good.

    Ctrl-C waits meanwhile.
    """
    with ctrl_c_waits():
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_with_parent() -> None:
    """Let this process end when the one that has started it by `start_bound` does; of any other process do nothing."""
    if os.environ.pop(PARENT_PIPE, None):
        hear_ctrl_c()
        threading.Thread(target=_read_to_end, name="parent", daemon=True).start()


def _read_to_end() -> None:
    while os.read(0, 4096):
        pass
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # as Ctrl-C: it ends waiting, too
    time.sleep(_GRACE_S)
    os._exit(1)
