"""Who works on what: locks that die with their owner."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from wsi_dino.provenance import storage_errors


class Claim:
    """The sole right to work on one item, held until `release` or until the process ends.

    The lock is the kernel's (``flock``), so it vanishes with its owner, also after ``kill -9``, and
    nothing stale is left to clear. Threads of one process exclude each other too.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the item back."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def try_claim(path: Path) -> Claim | None:
    """Claim the lock file `path` without waiting; None when another worker holds it.

    Examples:
        >>> import tempfile
        >>> lock = Path(tempfile.mkdtemp()) / "slide.lock"
        >>> first = try_claim(lock)
        >>> try_claim(lock) is None
        True
        >>> first.release()
        >>> try_claim(lock).release()
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            if _is_still_there(path, descriptor):
                return Claim(path, descriptor)
            os.close(descriptor)  # its last owner unlinked it between our open and our lock


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
