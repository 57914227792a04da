"""Fingerprints change with what they cover and with nothing else; files are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from wsi_dino import provenance
from wsi_dino.errors import StorageError

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class _Spec(BaseModel):
    mpp: float = 0.5
    folder: Path = Path("a/b")


# fingerprints ---------------------------------------------------------------------------------
@given(_JSON)
def test_canonical_json_round_trips(value: object) -> None:
    assert json.loads(provenance.canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_fingerprint_ignores_the_order_of_keys(spec: dict[str, int]) -> None:
    assert provenance.fingerprint(spec) == provenance.fingerprint(dict(reversed(spec.items())))


@given(_JSON, _JSON)
def test_fingerprint_tells_different_parts_apart(a: object, b: object) -> None:
    same = provenance.canonical_json(a) == provenance.canonical_json(b)
    assert (provenance.fingerprint(a) == provenance.fingerprint(b)) is same


def test_fingerprint_does_not_confuse_the_borders_of_parts() -> None:
    assert provenance.fingerprint("ab", "c") != provenance.fingerprint("a", "bc")


def test_fingerprint_takes_models_numpy_scalars_and_paths() -> None:
    assert provenance.fingerprint(_Spec()) == provenance.fingerprint({"mpp": np.float64(0.5), "folder": Path("a/b")})
    assert provenance.fingerprint(_Spec(mpp=0.25)) != provenance.fingerprint(_Spec())


def test_fingerprint_refuses_what_has_no_stable_text() -> None:
    with pytest.raises(TypeError, match="cannot fingerprint a object"):
        provenance.fingerprint(object())


def _big_file(path: Path, size: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def test_slide_fingerprint_follows_content_not_name(tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.svs", tmp_path / "b.tif", tmp_path / "c.svs"
    first.write_bytes(b"slide")
    second.write_bytes(b"slide")
    third.write_bytes(b"slidf")
    assert provenance.slide_fingerprint(first) == provenance.slide_fingerprint(second)
    assert provenance.slide_fingerprint(first) != provenance.slide_fingerprint(third)


@pytest.mark.parametrize("place", [0, -1])
def test_slide_fingerprint_of_a_large_file_sees_both_ends(tmp_path: Path, place: int) -> None:
    size = 65 * 2**20
    path = _big_file(tmp_path / "large.svs", size)
    before = provenance.slide_fingerprint(path)
    with path.open("r+b") as stream:
        stream.seek(place % size)
        stream.write(b"x")
    assert provenance.slide_fingerprint(path) != before


def test_slide_fingerprint_of_a_large_file_sees_its_size(tmp_path: Path) -> None:
    a = _big_file(tmp_path / "a.svs", 65 * 2**20)
    b = _big_file(tmp_path / "b.svs", 65 * 2**20 + 1)
    assert provenance.slide_fingerprint(a) != provenance.slide_fingerprint(b)


def test_slide_fingerprint_covers_the_companion_folder(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"index")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"1")
    before = provenance.slide_fingerprint(tmp_path / "a.mrxs")
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"2")
    assert provenance.slide_fingerprint(tmp_path / "a.mrxs") != before


def test_environment_names_what_can_change_a_result() -> None:
    assert {"wsi_dino", "python", "numpy", "torch", "timm", "h5py"} <= set(provenance.environment())


# writing --------------------------------------------------------------------------------------
def _write_half(path: Path, error: Exception) -> None:
    with provenance.write_atomically(path) as temporary:
        temporary.write_text("half")
        raise error


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="boom"):
        _write_half(path, ValueError("boom"))
    assert [item.name for item in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "old"


_WRITER = """
import os, sys, time
from pathlib import Path
from wsi_dino.provenance import write_atomically
with write_atomically(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def _killed_writer(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_kill_9_leaves_the_old_file_and_a_temporary_that_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "slide.with.dots.h5"
    path.write_text("old")
    _killed_writer(path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    assert provenance.remove_stale_temporaries(tmp_path) == 1
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_temporaries_of_living_writers_stay(tmp_path: Path) -> None:
    with provenance.write_atomically(tmp_path / "a.h5") as temporary:
        temporary.write_text("growing")
        assert provenance.remove_stale_temporaries(tmp_path) == 0
    assert (tmp_path / "a.h5").read_text() == "growing"


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with provenance.write_atomically(path) as first, provenance.write_atomically(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # left last


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = os.geteuid() == 0 and sys.platform == "linux"
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_a_storage_error_and_leaves_the_old_file(full_disk: Path) -> None:
    path = full_disk / "a.txt"
    provenance.write_text_atomically(path, "old")
    with pytest.raises(StorageError, match=r"a\.txt: the disk is full"):
        provenance.write_text_atomically(path, "x" * 2**20)
    assert path.read_text() == "old"
    assert [item.name for item in full_disk.iterdir()] == ["a.txt"]


def test_full_disk_under_hdf5_is_a_storage_error(full_disk: Path) -> None:
    path = full_disk / "a.h5"
    with (
        pytest.raises(StorageError, match="the disk is full"),
        provenance.write_atomically(path) as temporary,
        h5py.File(temporary, "w") as h5,
    ):
        h5.create_dataset("features", data=np.ones((2**18,), np.float32))
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_becomes_a_storage_error(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError, match="Free some space"):
        _write_half(tmp_path / "a", OSError(number, os.strerror(number)))


def test_file_in_place_of_the_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match=r"exists|directory"):
        provenance.write_text_atomically(tmp_path / "run" / "tiles.csv", "")


def test_denied_folder_is_a_storage_error() -> None:
    error = provenance.as_storage_error(PermissionError(errno.EACCES, "Permission denied"), Path("run/a"))
    assert isinstance(error, StorageError)
    assert "run/a: not permitted" in str(error)


def test_other_troubles_are_no_storage_errors() -> None:
    assert provenance.as_storage_error(FileNotFoundError(errno.ENOENT, "No such file"), Path("a")) is None


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    provenance.write_json_atomically(path, {"auc": float("nan"), "n": np.int64(3), "path": Path("a")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"auc": None, "n": 3, "path": "a"}


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    provenance.write_json_atomically(tmp_path / "a", {"x": [1.5, "é"]})
    time.sleep(0.01)
    provenance.write_json_atomically(tmp_path / "b", {"x": [1.5, "é"]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
