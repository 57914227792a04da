"""The chain of directories of a TIFF file: a truncated pyramid shows itself there first."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_MAX_DIRECTORIES = 65_536


def is_tiff(path: Path) -> bool:
    """Return whether `path` starts as a TIFF or BigTIFF file."""
    with path.open("rb") as stream:
        return stream.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def has_all_directories(path: Path) -> bool:
    """Return whether every directory of a TIFF or BigTIFF file lies whole within the file.

    A pyramid of which the end is missing has lost the directories of its coarser levels, while its first
    image may still be decoded: without this check it would pass for a plain picture.
    """
    size = os.path.getsize(path)
    with path.open("rb") as stream:
        try:
            return _walk(stream, size)
        except struct.error:  # a directory that starts within the file and ends beyond it
            return False


def _walk(stream: BinaryIO, size: int) -> bool:
    order = "<" if stream.read(2) == b"II" else ">"
    big = _unpack(stream, order + "H") == 43
    count_form, entry_bytes, offset_form = ("Q", 20, "Q") if big else ("H", 12, "I")
    if big:
        stream.seek(8)
    offset = _unpack(stream, order + offset_form)
    for _ in range(_MAX_DIRECTORIES):
        if offset == 0:
            return True
        if offset >= size:
            return False
        stream.seek(offset)
        n_entries = _unpack(stream, order + count_form)
        stream.seek(n_entries * entry_bytes, os.SEEK_CUR)
        offset = _unpack(stream, order + offset_form)
    return False


def _unpack(stream: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])
