"""Fingerprints change with what they cover and with nothing else; files are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

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


_WRITES_UNDER_A_LIMIT = """
import resource, sys, threading
import numpy as np
from pathlib import Path
from wsi_dino.errors import StorageError
from wsi_dino.feature_file import FeatureFile, write_feature_file
from wsi_dino.mil.attention_file import SlideAttention, write_attention
from wsi_dino.pathology.tile_grid import TileGrid, write_tile_grid

xy = np.arange(6000).reshape(3000, 2)
features = FeatureFile(np.ones((3000, 64), np.float16), xy, {"encoder": "e"})
attention = SlideAttention("S", 0, 0.5, np.full(3000, 1 / 3000, np.float32), xy, None)
grid = TileGrid("S", "f", xy, np.ones(3000), 224, (9, 9), (9, 9), 1, (9, 9), (2.0, 2.0), (99, 99), None, "m", 1.0, None)
writes = {
    "features": lambda path: write_feature_file(path, features),
    "attention": lambda path: write_attention(path, attention),
    "tiles": lambda path: write_tile_grid(path, grid),
}

def attempt(path, write):
    try:
        write(path)
        print("whole", path.stat().st_size)
    except StorageError as error:
        print(f"StorageError {error}")

def in_thread(path, write):
    thread = threading.Thread(target=attempt, args=(path, write))
    thread.start()
    thread.join()

write = writes[sys.argv[1]]
run = in_thread if sys.argv[2] == "thread" else attempt
for text in sys.argv[4:]:  # the greatest size of a file, which is found out in the midst of it like a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(text), resource.RLIM_INFINITY))
    run(Path(sys.argv[3]) / f"{text}.h5", write)
"""


def _written_under_limits(what: str, where: str, folder: Path, limits: list[int]) -> list[str]:
    command = [sys.executable, "-c", _WRITES_UNDER_A_LIMIT, what, where, str(folder), *map(str, limits)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")  # HDF5 would end the process by a signal, at the latest at its exit
    return out.splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes")
@pytest.mark.parametrize("where", ["main", "thread"])
@pytest.mark.parametrize("what", ["features", "attention", "tiles"])
def test_hdf5_that_finds_no_room_anywhere_in_a_file_is_a_storage_error(tmp_path: Path, what: str, where: str) -> None:
    [whole] = _written_under_limits(what, where, tmp_path, [2**30])
    size = int(whole.removeprefix("whole "))
    (tmp_path / f"{2**30}.h5").unlink()
    limits = [0, 1, 100, 1000, *range(3000, size, max(5000, size // 20)), size - 1, size]
    lines = _written_under_limits(what, where, tmp_path, limits)
    assert lines[-1] == f"whole {size}"
    for limit, line in zip(limits[:-1], lines[:-1], strict=True):
        assert line.startswith(f"StorageError Writing {tmp_path / str(limit)}.h5: File too large")
    assert [item.name for item in tmp_path.iterdir()] == [f"{size}.h5"]


def test_hdf5_gives_the_same_bytes_through_memory_and_straight_to_disk(tmp_path: Path) -> None:
    def write(name: str) -> None:
        with provenance.write_hdf5_atomically(tmp_path / name) as h5:
            h5.create_dataset("x", data=np.arange(300_000), chunks=(1000,), fletcher32=True)
            h5.attrs["told"] = "x" * 5000

    write("memory")
    thread = threading.Thread(target=write, args=("disk",))
    thread.start()
    thread.join()
    assert (tmp_path / "memory").read_bytes() == (tmp_path / "disk").read_bytes()


def test_hdf5_of_another_thread_takes_no_memory_for_the_file(tmp_path: Path) -> None:
    chunk, peaks = np.ones((256, 1024), np.float16), []

    def write() -> None:
        tracemalloc.start()
        with provenance.write_hdf5_atomically(tmp_path / "a.h5") as h5:
            rows = h5.create_dataset("x", (256 * 100, 1024), np.float16, chunks=chunk.shape, fletcher32=True)
            for start in range(0, len(rows), 256):
                rows[start : start + 256] = chunk
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "a.h5").stat().st_size > 50 * 2**20
    assert peaks[0] < 5 * 2**20


@pytest.mark.parametrize("where", ["main", "thread"])
def test_full_disk_under_hdf5_is_a_storage_error(full_disk: Path, where: str) -> None:
    limits = [2**30]
    _written_under_limits("attention", where, full_disk, limits)
    taken = full_disk / "other"
    taken.write_bytes(b"x" * (256 * 2**10 - (full_disk / f"{2**30}.h5").stat().st_size - 8192))
    kept = (full_disk / f"{2**30}.h5").read_bytes()
    [line] = _written_under_limits("attention", where, full_disk, limits)
    assert "the disk is full" in line
    assert (full_disk / f"{2**30}.h5").read_bytes() == kept
    assert {item.name for item in full_disk.iterdir()} == {"other", f"{2**30}.h5"}


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
