"""The journal keeps what was written whole, whatever happens to its tail."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import StorageError
from wsi_dino.pathology.journal import EncodingJournal, JournalRows

DIM, BATCH = 5, 4


def _open(path: Path, fingerprint: str = "f", dtype: str = "float32", batch_size: int = BATCH) -> EncodingJournal:
    return EncodingJournal(path, fingerprint, DIM, np.dtype(dtype), batch_size)


def _rows(batch: int, n: int = BATCH, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(n, DIM)).astype(dtype)


def _filled(path: Path, batches: list[int]) -> bytes:
    with _open(path) as journal:
        for batch in batches:
            journal.append(batch, _rows(batch))
    return path.read_bytes()


@given(order=st.permutations(range(6)), cut=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_journal_cut_anywhere_keeps_exactly_the_whole_records_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int
) -> None:
    path = tmp_path_factory.mktemp("j") / "s.journal"
    content = _filled(path, order)
    record = 12 + BATCH * DIM * 4
    header = len(content) - len(order) * record
    cut = min(cut, len(content))
    path.write_bytes(content[:cut])
    n_whole = max(0, cut - header) // record
    with _open(path) as journal:
        assert sorted(journal.batches) == sorted(order[:n_whole])
        for batch in order[:n_whole]:
            assert (journal.read_rows(batch * BATCH + np.arange(BATCH)) == _rows(batch)).all()
        for batch in order[n_whole:]:
            journal.append(batch, _rows(batch))
    assert path.read_bytes() == content


@given(at=st.integers(0, 400), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_is_never_read_as_features(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("j") / "s.journal"
    content = bytearray(_filled(path, [0, 1, 2]))
    content[at % len(content)] ^= flip
    path.write_bytes(content)
    with _open(path) as journal:
        assert len(journal.batches) < 3
        for batch in journal.batches:
            assert (journal.read_rows(batch * BATCH + np.arange(BATCH)) == _rows(batch)).all()


@pytest.mark.parametrize(
    "other", [{"fingerprint": "g"}, {"dtype": "float16"}, {"batch_size": 8}], ids=["request", "dtype", "batch"]
)
def test_a_journal_of_another_request_is_started_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    path = tmp_path / "s.journal"
    _filled(path, [0, 1])
    with _open(path, **other) as journal:
        assert journal.batches == {}
    with _open(path) as journal:
        assert journal.batches == {}


def test_garbage_in_place_of_a_journal_is_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    path.write_bytes(os.urandom(5000))
    with _open(path) as journal:
        assert journal.batches == {}
        journal.append(0, _rows(0))
    with _open(path) as journal:
        assert list(journal.batches) == [0]


@given(data=st.data(), n_tiles=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_rows_come_in_any_order_that_is_asked(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, n_tiles: int
) -> None:
    features = np.random.default_rng(0).normal(size=(n_tiles, DIM)).astype(np.float16)
    n_batches = -(-n_tiles // BATCH)
    with _open(tmp_path_factory.mktemp("j") / "s.journal", dtype="float16") as journal:
        for batch in data.draw(st.permutations(range(n_batches))):
            journal.append(batch, features[batch * BATCH : (batch + 1) * BATCH])
        places = np.array(data.draw(st.permutations(range(n_tiles))))
        rows = JournalRows(journal, places)
        assert (rows.shape, rows.dtype, len(rows), rows.ndim) == ((n_tiles, DIM), np.float16, n_tiles, 2)
        step = data.draw(st.integers(1, n_tiles))
        pieces = [rows[start : start + step] for start in range(0, n_tiles, step)]
        assert (np.concatenate(pieces) == features[places]).all()


def test_rows_of_another_shape_or_dtype_are_refused(tmp_path: Path) -> None:
    with _open(tmp_path / "s.journal") as journal:
        for wrong in (_rows(0, dtype="float16"), np.zeros((2, DIM + 1), np.float32)):
            with pytest.raises(ValueError, match="expected float32"):
                journal.append(0, wrong)


def test_a_full_disk_is_a_storage_error_and_what_was_stored_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.journal"
    real = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if offset > 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, bytes(data)[:7], offset)  # short writes are legal

    with _open(path) as journal:
        journal.append(0, _rows(0))
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="disk is full"):
            journal.append(1, _rows(1))
    monkeypatch.undo()
    with _open(path) as journal:
        assert list(journal.batches) == [0]


def test_a_deleted_journal_is_gone_and_closing_twice_is_harmless(tmp_path: Path) -> None:
    journal = _open(tmp_path / "a" / "s.journal")
    journal.delete()
    journal.close()
    assert not (tmp_path / "a" / "s.journal").exists()
