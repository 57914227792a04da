"""`embed` on several devices: one process each on the same run, told and counted as one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from wsi_dino.cli.interrupts import ctrl_c_waits
from wsi_dino.errors import EncoderError, WsiDinoError

if TYPE_CHECKING:
    from wsi_dino.cli.console import Progress
    from wsi_dino.cli.embed_request import EmbedRequest
    from wsi_dino.pathology.embedding import EmbedOutcome

_TELL_EVERY_S = 0.2
_GRACE_S = 10.0


@dataclass
class Worker:
    """One process and what came of it.

    Attributes:
        device: as planned, e.g. ``"cuda:1"``.
        outcome: of its call of `embed_slides`, or None.
        trouble: why it ended without an outcome, "" when it did not.
        encoded: tiles it has encoded so far; `seen`: these, and those that it found done.
    """

    device: str
    process: Any
    connection: Connection
    outcome: EmbedOutcome | None = None
    error: WsiDinoError | None = None
    trouble: str = ""
    encoded: float = 0
    seen: float = 0
    messages: list[str] = field(default_factory=list)


def embed_in_processes(
    request: EmbedRequest, devices: Sequence[str], progress: Progress, say: Callable[[str], None]
) -> tuple[EmbedOutcome, list[Worker]]:
    """Run one process a device on the run of `request`; its claims see to it that each slide is done once.

    A process that ends early leaves its slides to the others: a claim dies with its owner, and the
    journal of a slide in work stays.

    Returns:
        What all of them did together, and the processes.

    Raises:
        WsiDinoError: of the first process, when none came through.
    """
    workers: list[Worker] = []
    try:
        resource_tracker.ensure_running()  # else the first start would start it, and unblock SIGINT at that
        for device in devices:
            with ctrl_c_waits():
                workers.append(_start(request, device, len(devices)))
        _listen(workers, progress, say)
    finally:
        with ctrl_c_waits():
            _stop(workers)
    done = [worker.outcome for worker in workers if worker.outcome is not None]
    if not done:
        first = workers[0]
        raise first.error or EncoderError(
            f"Embedding on {', '.join(devices)}: no process came through; the first {first.trouble}. "
            "What is done is kept; the same command carries on."
        )
    from wsi_dino.pathology.embedding import merged_outcome

    return merged_outcome(done), workers


def _start(request: EmbedRequest, device: str, n_processes: int) -> Worker:
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(request, device, n_processes, theirs), name=f"embed {device}")
    process.start()
    theirs.close()  # so that the end of the process ends the pipe
    return Worker(device, process, ours)


# the parent ------------------------------------------------------------------------------------
def _listen(workers: list[Worker], progress: Progress, say: Callable[[str], None]) -> None:
    listening = {worker.connection: worker for worker in workers}
    shown = 0.0
    while listening:
        for connection in wait(list(listening)):
            worker = listening[connection]  # type: ignore[index]
            try:
                kind, value = worker.connection.recv()
            except (EOFError, OSError):
                del listening[worker.connection]
                _note_end(worker, say)
                continue
            _take(worker, kind, value, progress, say if worker is workers[0] else _keep_quiet)
        reached = max(sum(worker.encoded for worker in workers), *(worker.seen for worker in workers))
        progress(reached - shown)
        shown = reached


def _take(worker: Worker, kind: str, value: Any, progress: Progress, tell: Callable[[str], None]) -> None:
    if kind == "progress":
        worker.encoded += value["encoded"]
        worker.seen += value["encoded"] + value["found"]
        progress(total=value["total"], text=value["text"])
    elif kind == "notice":
        tell(value)
    elif kind == "outcome":
        worker.outcome = value
    elif kind == "error":
        worker.error, worker.trouble = value, f"gave up: {value}"
    else:
        worker.trouble = f"broke down: {value}"


def _note_end(worker: Worker, say: Callable[[str], None]) -> None:
    worker.process.join()
    code = worker.process.exitcode
    if worker.outcome is None and not worker.trouble:
        how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
        worker.trouble = f"{how} before its work was done"
    if worker.trouble:
        say(f"the process on {worker.device} {worker.trouble}\nIts slides are left to the others, or to a rerun.")


def _keep_quiet(message: str) -> None:
    """All processes say the same of the run; one is enough."""


def _stop(workers: list[Worker]) -> None:
    """End what still runs (Ctrl-C): politely, so that claims and journals are closed, then for good."""
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    until = time.monotonic() + _GRACE_S
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


# the processes ---------------------------------------------------------------------------------
def _work(request: EmbedRequest, device: str, n_processes: int, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends us
    signal.signal(signal.SIGTERM, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # ours were blocked until here: see `ctrl_c_waits`
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe = _Pipe(connection)
    try:
        from wsi_dino.cli.embed_request import embed_here

        outcome = embed_here(
            request,
            _only_visible(device),
            processes=n_processes,
            progress=pipe.progress,
            notice=lambda message: pipe.send("notice", message),
        )
        pipe.flush()
        pipe.send("outcome", outcome)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except WsiDinoError as error:
        pipe.send("error", type(error)(str(error)))
    except Exception:
        pipe.send("crash", traceback.format_exc())


def _only_visible(device: str) -> str:
    """Hide the other GPUs from this process, before torch looks for them; return the device's name from then on."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return device
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(index)] if int(index) < len(visible) else index
    return "cuda"


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed: nobody is left to hear of the rest


class _Pipe:
    """The way to the parent, from many threads; progress is gathered for a moment before it is sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._total: float | None = None
        self._text: str | None = None
        self._encoded = self._found = 0.0
        self._told_s = 0.0

    def progress(self, advance: float = 0, *, total: float | None = None, text: str | None = None) -> None:
        """Take note as `console.Progress` does; an advance with a text is of tiles encoded here."""
        with self._lock:
            self._total, self._text = total or self._total, text or self._text
            self._encoded += advance if text is not None else 0
            self._found += advance if text is None else 0
            is_due = time.monotonic() - self._told_s >= _TELL_EVERY_S
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        with self._lock:
            told = {"encoded": self._encoded, "found": self._found, "total": self._total, "text": self._text}
            self._encoded = self._found = 0.0
            self._told_s = time.monotonic()
        self.send("progress", told)

    def send(self, kind: str, value: Any) -> None:
        """Send one message; without a parent to hear it, end."""
        with self._lock:
            try:
                self._connection.send((kind, value))
            except BrokenPipeError:
                os._exit(1)
