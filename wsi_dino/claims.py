"""Who works on what, between threads, processes and machines that share a folder."""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import secrets
import time
import uuid
from pathlib import Path

from wsi_dino import heartbeat
from wsi_dino.provenance import storage_errors

_MOST_BYTES = 4096
_seen: dict[str, tuple[object, float]] = {}


class Claim:
    """The sole right to work on one item, held until `release` or until the process ends.

    The claim is one file with two signs of life. A kernel lock (``flock``) vanishes with its owner, also after
    ``kill -9``, and is believed on the owner's machine. A counter in the file goes up while the owner's work moves on,
    and is believed everywhere: where it stands still for `heartbeat.lease_s`, the owner is gone or hangs and the next
    one may replace the file. Threads of one process exclude each other too.

    Attributes:
        after_expiry: the item was taken from an owner that may still be alive and may still write.
    """

    def __init__(self, path: Path, descriptor: int, record: _Record, after_expiry: bool) -> None:
        self._path, self._descriptor, self._record = path.absolute(), descriptor, record
        self.after_expiry = after_expiry
        heartbeat.note_progress()
        heartbeat.beat_while_working(self, self._beat)

    def _beat(self) -> None:
        os.pwrite(self._descriptor, self._record.next(), 0)
        os.fsync(self._descriptor)  # a network file system shows it to the others only then

    def is_held(self) -> bool:
        """Return False once another has taken the item over, since this process stood still for too long."""
        return _is_still_there(self._path, self._descriptor)

    def release(self) -> None:
        """Give the item back."""
        heartbeat.stop_beat(self)
        heartbeat.note_progress()
        try:
            if self.is_held():
                self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)


class _Record:
    """What stands in the file: whose it is, and a counter."""

    def __init__(self) -> None:
        self._start = f"{this_machine()} {platform.node() or '?'} {os.getpid()} {secrets.token_hex(8)}"
        self._beat = -1

    def next(self) -> bytes:
        self._beat += 1
        return f"{self._start} {self._beat:010d}\n".encode()


@functools.cache
def this_machine() -> str:
    """Return what tells this running kernel from every other: a lock is believed only below the same one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{uuid.getnode():x}"


def try_claim(path: Path) -> Claim | None:
    """Claim the file `path` without waiting; None when another worker holds it.

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
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                claim = _create(path)
                if claim is not None:
                    return claim
                continue
            try:
                is_locked = _lock(descriptor)
                content = os.pread(descriptor, _MOST_BYTES, 0)
                if not _is_still_there(path, descriptor):
                    continue  # its last owner unlinked it between our open and our lock
                return _take_over(path, content, has_lock=is_locked)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Return whether the lock was free; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False


def _take_over(path: Path, content: bytes, *, has_lock: bool | None) -> Claim | None:
    """Replace the file of an owner that is dead or has been still for too long; None when it is neither."""
    is_dead = bool(has_lock) and content.startswith(this_machine().encode())
    if not is_dead and not _stands_still(path, content):
        return None
    # Of several that see the same, one replaces the file: the one that makes the marker. It looks again first.
    marker = path.with_name(f"{path.name}.next")
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        if _stands_still(marker, b""):  # killed within a moment
            marker.unlink(missing_ok=True)
        return None
    try:
        return _create(path, instead_of=content, after_expiry=not is_dead)
    finally:
        marker.unlink(missing_ok=True)
        _seen.pop(str(marker), None)


def _stands_still(path: Path, content: bytes) -> bool:
    """Whether this process has seen nothing else in `path` for a whole lease; no two clocks are compared."""
    now, key = time.monotonic(), str(path)
    seen, since = _seen.get(key, (None, now))
    if seen != content:
        _seen[key] = (content, now)
        return False
    if now - since < heartbeat.lease_s():
        return False
    _seen.pop(key, None)
    return True


def _create(path: Path, *, instead_of: bytes | None = None, after_expiry: bool = False) -> Claim | None:
    """Let the file appear whole and locked, or return None when somebody was quicker."""
    record = _Record()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    is_placed = False
    try:
        _lock(descriptor)
        os.write(descriptor, record.next())
        if not this_is_local(path.parent):
            os.fsync(descriptor)
        is_placed = _place(temporary, path, descriptor, instead_of)
        return Claim(path, descriptor, record, after_expiry) if is_placed else None
    finally:
        if not is_placed:
            os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path, descriptor: int, instead_of: bytes | None) -> bool:
    if instead_of is not None:
        is_free = _content(path) == instead_of
    else:
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            return False
        except OSError:
            if os.fstat(descriptor).st_nlink > 1:  # the link was made and the server's answer was lost
                return True
            is_free = not path.exists()  # a file system without links: two may still do this at once, and work twice
    if is_free:
        os.replace(temporary, path)
    return is_free


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "9p", "afs", "gluster", "virtiofs")


@functools.cache
def this_is_local(folder: Path) -> bool:
    """Return whether `folder` lies on a file system of this machine alone; unknown is taken for shared."""
    try:
        device = os.stat(folder).st_dev
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split(" ")[0] for line in lines if line.split(" ")[2] == wanted]
    return bool(kinds) and not any(kind.startswith(_NETWORK) for kind in kinds)
