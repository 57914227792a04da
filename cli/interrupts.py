"""Ctrl-C: heard when it does no harm, told in one sentence, never as a traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Let Ctrl-C wait until what is begun is done: a process started whole and known, or ended.

    Processes and threads that are started meanwhile begin with SIGINT blocked: a Ctrl-C from the keyboard, which
    reaches all processes of a terminal, is for the one that started them. In a thread, where no Ctrl-C arrives, and
    where it is ignored (in the background of a shell), nothing is changed.

    Raises:
        KeyboardInterrupt: at the end, when it was pressed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt


def hear_ctrl_c() -> None:
    """Undo in a process started within `ctrl_c_waits`, or by a shell in its background, what it has inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_program(load: Callable[[], Callable[[list[str] | None], None]]) -> None:
    """Run the program and leave; a Ctrl-C that it cannot hear, while it is loaded or leaves, shows no traceback.

    Args:
        load: imports the program and returns it; it leaves by SystemExit.
    """
    try:
        load()(None)
    except KeyboardInterrupt:  # before it could hear of it, or once more while it was telling of it
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)
    finally:
        _leave_at_once_when_pressed()


def _leave_at_once_when_pressed() -> None:
    """What is left is waiting for threads and handlers at exit; everything written is whole without them."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
