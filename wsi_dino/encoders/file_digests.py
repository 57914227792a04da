"""SHA-256 of large files, remembered between commands so that gigabytes are not read at every start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from wsi_dino.errors import StorageError
from wsi_dino.provenance import file_sha256, write_json_atomically

# Below this a file is hashed faster than it is worth remembering.
_REMEMBERED_FROM_BYTES = 16 * 2**20
# A file that was written a moment ago may be written again without its time stamps showing it.
_SETTLED_AFTER_NS = 2 * 10**9


def user_cache_folder() -> Path:
    """Return the folder for what may be deleted at any time: ``$XDG_CACHE_HOME/wsi_dino`` or ``~/.cache/wsi_dino``."""
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or os.path.expanduser("~/.cache")
    # Without a home `~` stays as it is: then nothing can be kept, and no folder of that name is made.
    return Path(base if os.path.isabs(base) else os.devnull) / "wsi_dino"


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; read anew only when the file may have changed.

    It counts as unchanged while path, size, inode and the times of its last write and last change of
    status are the same. The latter cannot be set by a program, so that a file put in place with an old
    date is noticed too. A cache folder that cannot be written costs time alone.
    """
    before = _stamp(path)
    if path.stat().st_size < _REMEMBERED_FROM_BYTES:
        return file_sha256(path)
    note = _note(path)
    return _read(note, before) or _hashed(path, note, before)


def reread_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex, reading every byte whatever is remembered."""
    return _hashed(path, _note(path), _stamp(path))


def _hashed(path: Path, note: Path, before: dict[str, int | str]) -> str:
    begun_ns, state = time.time_ns(), path.stat()
    digest = file_sha256(path)
    settled = _stamp(path) == before and begun_ns - state.st_ctime_ns > _SETTLED_AFTER_NS
    if settled and state.st_size >= _REMEMBERED_FROM_BYTES:
        _write(note, before | {"sha256": digest})
    return digest


def _stamp(path: Path) -> dict[str, int | str]:
    state = path.stat()
    return {
        "path": str(path.resolve()),
        "bytes": state.st_size,
        "inode": state.st_ino,
        "written_ns": state.st_mtime_ns,
        "changed_ns": state.st_ctime_ns,
    }


def _note(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return user_cache_folder() / "sha256" / f"{name}.json"


def _read(note: Path, stamp: dict[str, int | str]) -> str | None:
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    digest = kept.pop("sha256", None) if isinstance(kept, dict) else None
    return digest if kept == stamp and isinstance(digest, str) and len(digest) == 64 else None


def _write(note: Path, content: dict[str, int | str]) -> None:
    try:
        write_json_atomically(note, content)
    except (StorageError, OSError):
        return  # a home that is read-only or full is no reason to stop
