"""Where a result came from, and writing it so that it is either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wsi_dino import __version__
from wsi_dino.errors import StorageError

_SAMPLED_ABOVE_BYTES = 64 * 2**20
_N_SAMPLES = 64
_SAMPLE_BYTES = 64 * 2**10
_MARK_LENGTH = 16  # eight digits of chance and eight of the machine
_ALIVE_ELSEWHERE_S = 24 * 3600.0
_VERSIONED_PACKAGES = (
    "numpy", "torch", "timm", "h5py", "opencv-python", "pillow",
    "openslide-python", "openslide-bin", "tifffile", "imagecodecs",
)  # fmt: skip


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values always give equal text.

    pydantic models are dumped in JSON form; keys are sorted.

    Examples:
        >>> canonical_json({"b": 1, "a": (1, 2)})
        '{"a":[1,2],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain_value)


def plain_value(value: Any) -> Any:
    """Return a JSON-able form of a model, a numpy scalar or a path (for ``json.dumps(default=...)``)."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):  # numpy scalars
        return value.item()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot fingerprint a {type(value).__name__}: {value!r}")


def fingerprint(*parts: Any) -> str:
    """Return 32 hex digits that change whenever any of `parts` changes.

    Examples:
        >>> fingerprint({"a": 1}) == fingerprint({"a": 1})
        True
        >>> fingerprint({"a": 1}) == fingerprint({"a": 2})
        False
    """
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the whole file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def slide_fingerprint(path: Path, *, with_companion: bool = True) -> str:
    """Return 32 hex digits that identify the content of a slide, whatever its name, folder or date.

    Files up to 64 MiB are hashed whole; of larger ones the size and 64 evenly spaced blocks of
    64 KiB, first and last included, so that a slide of 4 GB costs milliseconds. A slide that is a
    folder or has a companion folder (MRXS, DICOM) is identified by all of its files.

    Args:
        path: of the slide, or of another large file or folder.
        with_companion: whether a folder that has the file's name without its suffix belongs to it.
    """
    companion = path.with_suffix("")
    folder = path if path.is_dir() else companion if with_companion and companion.is_dir() else None
    files = [path] if path.is_file() else []
    if folder is not None:
        files += sorted(item for item in folder.rglob("*") if item.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(_sampled_digest(file))
    return digest.hexdigest()[:32]


def _sampled_digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        if size <= _SAMPLED_ABOVE_BYTES:
            return digest.digest() + hashlib.file_digest(stream, "sha256").digest()
        for index in range(_N_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * index // (_N_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.digest()


@lru_cache(maxsize=8)
def environment(*further: str) -> dict[str, str]:
    """Return the versions that can change a result: ours, Python's, the libraries'.

    Args:
        further: packages that decide the results of one room alone. They are not told of by the others, whose
            finished work would be done anew when such a package is updated.
    """
    versions = {"wsi_dino": __version__, "python": platform.python_version()}
    for package in (*_VERSIONED_PACKAGES, *further):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success fsync it and rename it to `path`.

    A reader sees the old file or the new one, never half of one, also after ``kill -9`` or a power
    cut. When the block raises, the temporary file is removed and `path` is untouched.

    Raises:
        StorageError: the disk is full or the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with write_atomically(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}{_machine_tag()}.tmp")
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_hdf5_atomically(path: Path) -> Iterator[Any]:
    """Yield a new `h5py.File`, which becomes `path` on success; see `write_atomically`.

    HDF5 crashes the process when it cannot write, so that it must not meet a full disk. In the main thread, where
    Ctrl-C arrives, the file is in memory, compressed as asked for, until it is whole. In any other thread it is
    written to disk as it grows. The bytes are the same.
    """
    import h5py

    if threading.current_thread() is threading.main_thread():
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            yield file
        with write_atomically(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        return
    with write_atomically(path) as temporary, _PatientFile(temporary) as patient, h5py.File(patient, "w") as file:
        yield file


class _PatientFile(io.FileIO):
    """A file that seems to take all that is written to it, and tells afterwards what went wrong."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._trouble: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing any more once there was no room."""
        rest = memoryview(data).cast("B")
        n_bytes = len(rest)
        try:
            while self._trouble is None and len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._trouble = error
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend, if there was room so far."""
        try:
            return super().truncate(size) if self._trouble is None else size or 0
        except OSError as error:
            self._trouble = error
            return size or 0

    def __exit__(self, *error: Any) -> None:
        """Close it, and raise the first trouble there was, of which any other error is a consequence."""
        super().__exit__(*error)
        if self._trouble is not None:
            raise self._trouble


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 through `write_atomically`."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as indented JSON through `write_atomically`. NaN is written as null."""
    write_text_atomically(path, json.dumps(without_nan(value), indent=2, default=plain_value) + "\n")


def without_nan(value: Any) -> Any:
    """Return `value` with every NaN or infinity replaced by None, since JSON has neither.

    Examples:
        >>> without_nan({"auc": float("nan"), "folds": [1.0, float("inf")]})
        {'auc': None, 'folds': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's 'no space', 'read-only' and 'denied' into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        storage = as_storage_error(error, path)
        if storage is None:
            raise
        raise storage from error


def as_storage_error(error: OSError, path: Path) -> StorageError | None:
    """Return the StorageError that `error` amounts to while writing `path`, or None when it is another trouble."""
    text = str(error).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "no space left" in text or "errno = 28" in text:
        advice = "Free some space and run the same command again: finished files are kept."
        return StorageError(f"Writing {path}: the disk is full. {advice}")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(f"Writing {path}: not permitted ({error.strerror}). Choose another folder with --run.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.EFBIG):
        return StorageError(f"Writing {path}: {error.strerror}. Choose another folder with --run.")
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: Path, names: Iterable[str] = ("*",)) -> int:
    """Remove temporary files that a killed process left in `folder`; those of living ones stay.

    Returns:
        How many files were removed.
    """
    removed = 0
    for name in names:
        for temporary in folder.glob(f".{name}.tmp"):
            if not owner_is_alive(temporary):
                temporary.unlink(missing_ok=True)
                removed += 1
    return removed


def owner_is_alive(temporary: Path) -> bool:
    """Tell whether the process that writes a temporary file of `write_atomically` still runs.

    Of another machine that cannot be told: its files count as alive for a day after they were last written to.

    Examples:
        >>> owner_is_alive(Path(f".tiles.csv.{os.getpid()}.0a1b2c3d.tmp"))
        True
    """
    owner, mark = temporary.name.split(".")[-3:-1]
    if len(mark) == _MARK_LENGTH and not mark.endswith(_machine_tag()):
        try:
            return time.time() - temporary.stat().st_mtime < _ALIVE_ELSEWHERE_S
        except FileNotFoundError:
            return False
    return not owner.isdigit() or _is_alive(int(owner))


@lru_cache(maxsize=1)
def _machine_tag() -> str:
    """Return eight digits that tell the machines apart that share a folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
