"""Digests are remembered for large files that did not change, and only for these."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from wsi_dino.encoders import file_digests
from wsi_dino.encoders.file_digests import remembered_sha256, reread_sha256, user_cache_folder

_SIZE = 17 * 2**20


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is read whole; files count as settled at once."""
    done: list[Path] = []

    def sha256(path: Path) -> str:
        done.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_digests, "file_sha256", sha256)
    monkeypatch.setattr(file_digests, "_SETTLED_AFTER_NS", -1)
    return done


def _file(tmp_path: Path, content: bytes = b"a" * _SIZE) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    return path


def test_a_large_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path = _file(tmp_path)
    assert {remembered_sha256(path) for _ in range(3)} == {hashlib.sha256(b"a" * _SIZE).hexdigest()}
    assert reads == [path]
    reread_sha256(path)
    assert reads == [path, path]


def test_a_small_file_leaves_no_note(tmp_path: Path, reads: list[Path]) -> None:
    path = _file(tmp_path, b"a")
    remembered_sha256(path)
    remembered_sha256(path)
    assert reads == [path, path]
    assert not user_cache_folder().exists()


def test_a_change_is_noticed_even_with_the_old_size_and_date(tmp_path: Path, reads: list[Path]) -> None:
    path = _file(tmp_path)
    first, state = remembered_sha256(path), path.stat()
    with path.open("r+b") as stream:
        stream.write(b"b")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert remembered_sha256(path) != first


def test_another_file_put_in_its_place_is_noticed(tmp_path: Path, reads: list[Path]) -> None:
    path = _file(tmp_path)
    first = remembered_sha256(path)
    other = tmp_path / "other.bin"
    other.write_bytes(b"b" * _SIZE)
    os.replace(other, path)
    assert remembered_sha256(path) == hashlib.sha256(b"b" * _SIZE).hexdigest() != first


def test_a_file_just_written_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_SETTLED_AFTER_NS", 10**12)
    path = _file(tmp_path)
    remembered_sha256(path)
    remembered_sha256(path)
    assert len(reads) == 2


@pytest.mark.parametrize("note", ["", "{}", "[1]", '{"sha256": "' + "0" * 64 + '"}'])
def test_a_damaged_note_is_not_believed(tmp_path: Path, reads: list[Path], note: str) -> None:
    path = _file(tmp_path)
    first = remembered_sha256(path)
    (kept,) = (user_cache_folder() / "sha256").iterdir()
    kept.write_text(note)
    assert remembered_sha256(path) == first
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    path = _file(tmp_path)
    assert remembered_sha256(path) == remembered_sha256(path)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "")
    assert len(remembered_sha256(path)) == 64
    assert len(reads) == 3
