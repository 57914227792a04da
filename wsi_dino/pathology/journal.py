"""Features of a slide that is still being embedded: an append-only file that survives ``kill -9``."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
import zlib
from pathlib import Path
from types import TracebackType

import numpy as np

from wsi_dino.provenance import storage_errors, write_atomically

_MAGIC = b"wsi-dino journal 1\n"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<III")  # batch, rows, crc32 of batch, rows and payload
_FSYNC_EVERY_S = 5.0


class EncodingJournal:
    """Encoded batches of one slide and one encoder, each written once, in any order.

    A file holds a header with `fingerprint`, then records of one batch each with a checksum. Opening
    an existing file of the same fingerprint keeps its valid records and cuts off a torn tail; one of
    another fingerprint is started anew. One process at a time may hold a journal (the caller's claim
    of the slide sees to that).

    Args:
        path: the journal's file; its folder is made.
        fingerprint: changes with anything that can change a row or the cut into batches.
        embed_dim: length of a row.
        dtype: of the stored rows.
        batch_size: tiles of a full batch; batch ``k`` holds the tiles ``k * batch_size ...`` of reading order.

    Raises:
        StorageError: the disk is full or the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "slide.journal"
        >>> with EncodingJournal(path, "f1", 2, np.dtype(np.float32), batch_size=2) as journal:
        ...     journal.append(1, np.array([[5.0, 6.0]], np.float32))
        >>> with EncodingJournal(path, "f1", 2, np.dtype(np.float32), batch_size=2) as journal:
        ...     sorted(journal.batches), journal.read_rows(np.array([2])).tolist()
        ([1], [[5.0, 6.0]])
    """

    def __init__(self, path: Path, fingerprint: str, embed_dim: int, dtype: np.dtype, batch_size: int) -> None:
        self.path = path
        self.batches: dict[int, int] = {}
        self.dtype, self.embed_dim, self.batch_size = dtype, embed_dim, batch_size
        self._offsets: dict[int, int] = {}
        self._synced_s = time.monotonic()
        header = {"fingerprint": fingerprint, "embed_dim": embed_dim, "dtype": dtype.name, "batch_size": batch_size}
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._end = self._recover(json.dumps(header, sort_keys=True).encode())
            except BaseException:
                os.close(self._descriptor)
                raise

    def __enter__(self) -> EncodingJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _recover(self, header: bytes) -> int:
        start = _MAGIC + _LENGTH.pack(len(header)) + header
        start += _LENGTH.pack(zlib.crc32(start))
        if os.pread(self._descriptor, len(start), 0) != start:
            os.ftruncate(self._descriptor, 0)
            self._write(start, 0)
            return len(start)
        end = len(start)
        while (size := self._valid_record(end)) is not None:
            end += size
        os.ftruncate(self._descriptor, end)
        return end

    def _valid_record(self, offset: int) -> int | None:
        head = os.pread(self._descriptor, _RECORD.size, offset)
        if len(head) < _RECORD.size:
            return None
        batch, n_rows, checksum = _RECORD.unpack(head)
        if not 0 < n_rows <= self.batch_size:
            return None
        payload = os.pread(self._descriptor, n_rows * self._row_bytes, offset + _RECORD.size)
        if len(payload) < n_rows * self._row_bytes or _checksum(batch, n_rows, payload) != checksum:
            return None
        self._note(batch, n_rows, offset + _RECORD.size)
        return _RECORD.size + len(payload)

    @property
    def _row_bytes(self) -> int:
        return self.embed_dim * self.dtype.itemsize

    def _note(self, batch: int, n_rows: int, offset: int) -> None:
        self.batches[batch] = n_rows
        self._offsets[batch] = offset

    def append(self, batch: int, rows: np.ndarray) -> None:
        """Store the rows of one batch: ``(n, embed_dim)`` of the journal's dtype, ``n <= batch_size``.

        Raises:
            StorageError: the disk is full; what was stored before stays valid.
        """
        if rows.dtype != self.dtype or rows.shape != (len(rows), self.embed_dim):
            raise ValueError(f"expected {self.dtype} (n, {self.embed_dim}), got {rows.dtype} {rows.shape}")
        payload = np.ascontiguousarray(rows).tobytes()
        head = _RECORD.pack(batch, len(rows), _checksum(batch, len(rows), payload))
        with storage_errors(self.path):
            self._write(head + payload, self._end)
            self._sync_now_and_then()
        self._note(batch, len(rows), self._end + len(head))
        self._end += len(head) + len(payload)

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _sync_now_and_then(self) -> None:
        # a killed process loses nothing that was written; only a power cut can, so seldom is enough
        if time.monotonic() - self._synced_s > _FSYNC_EVERY_S:
            os.fsync(self._descriptor)
            self._synced_s = time.monotonic()

    def read_rows(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at `places` of reading order, ``(len(places), embed_dim)``, whatever their order."""
        rows = np.empty((len(places), self.embed_dim), self.dtype)
        batches = places // self.batch_size
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(batches)) + 1):
            if len(run):
                batch = int(batches[run[0]])
                rows[run] = self._batch_rows(batch, places[run] - batch * self.batch_size)
        return rows

    def _batch_rows(self, batch: int, rows: np.ndarray) -> np.ndarray:
        first, last = int(rows.min()), int(rows.max()) + 1
        offset = self._offsets[batch] + first * self._row_bytes
        data = os.pread(self._descriptor, (last - first) * self._row_bytes, offset)
        return np.frombuffer(data, self.dtype).reshape(last - first, self.embed_dim)[rows - first]

    def close(self) -> None:
        """Close the file and keep it. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def delete(self) -> None:
        """Close the file and remove it."""
        self.close()
        self.path.unlink(missing_ok=True)


def leave_to_former_owner(path: Path) -> None:
    """Put a copy in the place of a journal that another process may still write to: what it writes is then its own."""
    if path.is_file():
        with write_atomically(path) as temporary:
            shutil.copyfile(path, temporary)


def _checksum(batch: int, n_rows: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<II", batch, n_rows)))


class JournalRows:
    """Rows of a complete journal in the order of the tile grid, read piece by piece.

    Looks enough like an array ``(n, embed_dim)`` for `feature_file.write_feature_file`, so that the
    features of a slide of any size never stand in memory at once.
    """

    def __init__(self, journal: EncodingJournal, place_of_tile: np.ndarray) -> None:
        self._journal = journal
        self._places = place_of_tile
        self.shape = (len(place_of_tile), journal.embed_dim)
        self.dtype = journal.dtype
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._journal.read_rows(self._places[rows])
