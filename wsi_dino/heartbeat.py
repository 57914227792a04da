"""Signs of life of this process, for as long as its work moves on; nothing here knows what the work is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from wsi_dino.errors import ConfigError

_LEASE_S, _HANG_S = 120.0, 3600.0
_BEATS_A_LEASE = 8

_lock = threading.Lock()
_beating: dict[object, Callable[[], None]] = {}
_watching: dict[object, Callable[[], None]] = {}
_thread: threading.Thread | None = None
_progress_s = time.monotonic()


def lease_s() -> float:
    """Seconds without a beat after which an owner on another machine counts as gone (``WSI_DINO_LEASE_S``)."""
    return _seconds("WSI_DINO_LEASE_S", _LEASE_S)


def hang_s() -> float:
    """Seconds without progress after which a process counts as hanging and no longer beats (``WSI_DINO_HANG_S``)."""
    return _seconds("WSI_DINO_HANG_S", _HANG_S)


def beat_s() -> float:
    """Seconds between beats: several fit into a lease."""
    return lease_s() / _BEATS_A_LEASE


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"{name}={text}: expected seconds above 0.")
    return value


def note_progress() -> None:
    """Tell that the work moved on: an item was taken or finished, a batch encoded, an epoch learnt."""
    global _progress_s
    _progress_s = time.monotonic()


def progress_age_s() -> float:
    """Seconds since `note_progress` was last called in this process."""
    return time.monotonic() - _progress_s


def beat_while_working(key: object, beat: Callable[[], None]) -> None:
    """Call `beat` every `beat_s` from a thread of its own, but not while the process hangs."""
    _add(_beating, key, beat)


def beat_always(key: object, beat: Callable[[], None]) -> None:
    """Call `beat` every `beat_s`, hanging or not."""
    _add(_watching, key, beat)


def stop_beat(key: object) -> None:
    """Call it no more."""
    with _lock:
        _beating.pop(key, None)
        _watching.pop(key, None)


def _add(calls: dict[object, Callable[[], None]], key: object, beat: Callable[[], None]) -> None:
    global _thread
    with _lock:
        calls[key] = beat
        if _thread is None or not _thread.is_alive():  # also after a fork, which takes no threads along
            _thread = threading.Thread(target=_run, name="heartbeat", daemon=True)
            _thread.start()


def _run() -> None:
    while True:
        time.sleep(beat_s())
        with _lock:
            calls = [*_watching.values(), *(_beating.values() if progress_age_s() < hang_s() else ())]
        for call in calls:
            with suppress(Exception):  # a full disk or a folder that is gone: the work itself will tell
                call()
