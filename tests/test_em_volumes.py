"""EM volumes as they are published and passed on, with their traps."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from toy_neurons import drawn_neurons, write_pair

from wsi_dino.errors import ConfigError, VolumeError
from wsi_dino.segmentation.neurons.array_file import numbered_sections, open_array
from wsi_dino.segmentation.neurons.datasets import open_dataset, open_files
from wsi_dino.segmentation.neurons.em_volume import pair
from wsi_dino.segmentation.neurons.neuron_ids import IdTable, read_ids


def _h5(path: Path, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for key, voxels in datasets.items():
            file[key.replace("__", "/")] = voxels
    return path


def test_the_one_volume_of_an_hdf5_file_is_found_and_a_named_one_is_taken(tmp_path: Path) -> None:
    small, large = np.zeros((2, 3, 4), np.uint8), np.ones((3, 3, 4), np.uint8)
    one = _h5(tmp_path / "one.h5", stuff__voxels=small, names=np.zeros(5))
    assert open_array(one).key == "stuff/voxels"
    two = _h5(tmp_path / "two.h5", a=small, b=large)
    with pytest.raises(VolumeError, match="2 volumes"):
        open_array(two)
    assert open_array(f"{two}:b").shape == (3, 3, 4)
    with pytest.raises(VolumeError, match="no dataset 'c'"):
        open_array(f"{two}:c")


def test_tiff_pages_and_numbered_sections_give_the_same_voxels(tmp_path: Path) -> None:
    grey, _ = drawn_neurons((11, 6, 8))
    tifffile.imwrite(tmp_path / "stack.tif", grey)
    folder = tmp_path / "sections"
    folder.mkdir()
    for z, section in enumerate(grey):
        tifffile.imwrite(folder / f"s{z}.tif", section)  # 10 sorts before 2 as text
    for source in (tmp_path / "stack.tif", folder):
        file = open_array(source)
        assert file.shape == grey.shape
        np.testing.assert_array_equal(file.read_sections(2, 11), grey[2:11])


def test_a_missing_or_doubled_section_is_refused(tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "a4.png"):
        (tmp_path / name).touch()
    with pytest.raises(VolumeError, match="missing are 3"):
        numbered_sections(tmp_path)
    (tmp_path / "b003.png").touch()
    (tmp_path / "b3.png").touch()
    with pytest.raises(VolumeError, match="share a number"):
        numbered_sections(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + b"x" * 40, b"no volume"])
def test_a_broken_file_is_told_in_one_error(tmp_path: Path, content: bytes) -> None:
    for name in ("broken.h5", "broken.tif"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VolumeError, match=r"broken\."):
            open_array(tmp_path / name)


def test_cremis_mark_of_no_neuron_becomes_0_and_large_ids_stay_apart() -> None:
    ids = np.array([[2**64 - 1, 2**64 - 2, 0, 2**53, 2**53 + 1, 7]], np.uint64)
    assert IdTable("x").numbered(ids).tolist() == [[0, 0, 0, 2, 3, 1]]


def test_ids_are_numbered_alike_over_blocks() -> None:
    _, ids = drawn_neurons()
    table = IdTable("x")
    numbered = np.stack([table.numbered(section) for section in ids.astype(np.uint64) * 10**15])
    pairs = np.unique(np.stack([ids.ravel(), numbered.ravel()]), axis=1).T
    assert len(pairs) == len(np.unique(ids)) == len(np.unique(numbered))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[[-5, 1]]], np.int32), "lost ids"),
        (np.array([[[2**64 - 1, 1]]], np.uint64).astype(np.uint32), "a cast makes"),
        (np.array([[[0.5, 1.0]]], np.float32), "whole numbers"),
        (np.array([[[2.0**30, 1.0]]], np.float32), "ids were lost"),
        (np.array([[[np.nan, 1.0]]], np.float64), "whole numbers"),
        (np.zeros((1, 2, 2), np.uint32), "no neuron"),
        (np.full((1, 2, 2), 3, np.uint32), "one neuron"),
    ],
)
def test_ids_that_make_no_sense_are_refused(tmp_path: Path, ids: np.ndarray, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        read_ids(open_array(_h5(tmp_path / "ids.h5", main=ids)), 0, 1)


def test_labels_of_a_padded_volume_lie_where_their_offset_says(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((6, 20, 24))
    path = tmp_path / "sample_A_padded_20160501.hdf"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("volumes/raw", data=grey)
        labels = file.create_dataset("volumes/labels/neuron_ids", data=ids[1:5, 2:18, 4:20].astype(np.uint64))
        raw.attrs["resolution"] = labels.attrs["resolution"] = (40.0, 4.0, 4.0)
        labels.attrs["offset"] = (40.0, 8.0, 16.0)
    source = pair("train", f"{path}:volumes/raw", f"{path}:volumes/labels/neuron_ids")
    np.testing.assert_array_equal(source.read_raw().voxels, grey[1:5, 2:18, 4:20])
    assert source.resolution_nm == (40.0, 4.0, 4.0)
    with h5py.File(path, "a") as file:
        file["volumes/labels/neuron_ids"].attrs["offset"] = (200.0, 8.0, 16.0)
    with pytest.raises(VolumeError, match="beyond"):
        pair("train", f"{path}:volumes/raw", f"{path}:volumes/labels/neuron_ids")


def test_shapes_that_differ_without_an_offset_are_refused(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((4, 20, 24))
    with pytest.raises(VolumeError, match="shapes differ"):
        pair("train", *write_pair(tmp_path, "x", grey, ids[:, :19]))


def test_voxels_of_two_sizes_or_of_none_are_refused(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((4, 20, 24))
    files = write_pair(tmp_path, "x", grey, ids)

    def told(raw: object, labels: object) -> None:
        for path, resolution in zip(files, (raw, labels), strict=True):
            with h5py.File(path, "a") as file:
                file["main"].attrs["resolution"] = resolution

    told((40.0, 4.0, 4.0), (40.0, 4.0, 4.0))
    assert pair("train", *files).resolution_nm == (40.0, 4.0, 4.0)
    for raw, labels, message in (
        ((40.0, 4.0, 4.0), (40.0, 8.0, 8.0), "one grid"),
        ((40.0, 0.0, 4.0), (40.0, 0.0, 4.0), "above 0"),
        ("40 nm", (40.0, 4.0, 4.0), "three numbers"),
    ):
        told(raw, labels)
        with pytest.raises(VolumeError, match=message):
            pair("train", *files)


def test_what_holds_no_grey_values_is_refused(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((3, 20, 24))
    _, labels = write_pair(tmp_path, "x", grey, ids)
    for name, voxels, message in (
        ("null", h5py.Empty("u1"), "three axes"),
        ("text", np.full(grey.shape, b"a"), "0 to 255"),
        ("colours", np.zeros(grey.shape, [("r", "u1"), ("g", "u1")]), "0 to 255"),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["main"] = voxels
        with pytest.raises(VolumeError, match=message):
            pair("train", str(tmp_path / f"{name}.h5"), labels).read_raw()
    tifffile.imwrite(tmp_path / "colours.tif", np.zeros((20, 24, 3), np.uint8), photometric="rgb")
    with pytest.raises(VolumeError, match="one grey channel"):
        open_array(tmp_path / "colours.tif")


def test_a_damaged_byte_anywhere_is_read_or_told_and_nothing_else(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((3, 20, 24))
    h5, _ = write_pair(tmp_path, "x", grey, ids)
    folder = tmp_path / "sections"
    folder.mkdir()
    for z, section in enumerate(grey):
        tifffile.imwrite(folder / f"s{z}.tif", section, compression="zlib")
    rng = np.random.default_rng(0)
    for path, source in ((Path(h5), h5), (folder / "s1.tif", folder)):
        whole = path.read_bytes()
        outcomes = set()
        for start in rng.integers(0, len(whole), 60):
            damaged = whole[:start] + rng.bytes(40) + whole[start + 40 :]
            path.write_bytes(damaged if start % 3 else whole[:start])
            try:
                open_array(source).read_sections(0, 3)
            except VolumeError as error:
                outcomes.add(path.name in str(error))
        assert outcomes == {True}


def test_nan_deep_and_blank_grey_values_are_refused(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((3, 20, 24))
    for name, voxels, message in (
        ("nan", np.where(ids == 1, np.nan, grey).astype(np.float32), "NaN"),
        ("deep", grey.astype(np.uint16) * 100, "0 to 255"),
        ("unit", grey.astype(np.float32) / 255, "0 to 1"),
        ("blank", np.zeros_like(grey), "one grey value"),
    ):
        with pytest.raises(VolumeError, match=message):
            pair("train", *write_pair(tmp_path, name, voxels, ids)).read_raw()


def test_only_content_identifies_a_volume_not_a_run_of_its_name_beside_it(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((5, 20, 24))
    files = write_pair(tmp_path, "x", grey, ids)
    before = pair("train", *files).fingerprint()
    run = Path(files[0]).with_suffix("")
    run.mkdir()
    (run / "metrics.json").write_text("{}")
    assert pair("train", *files).fingerprint() == before
    with h5py.File(files[0], "a") as file:
        file["main"][2, 3, 4] += 1
    assert pair("train", *files).fingerprint() != before


def test_blank_sections_are_told_and_repaired_when_asked(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((5, 20, 24))
    damaged = grey.copy()
    damaged[2] = 0
    files = write_pair(tmp_path, "x", damaged, ids)
    as_is = pair("train", *files).read_raw()
    assert not as_is.voxels[2].any()
    assert "sections 2 are blank" in as_is.remarks[0]
    repaired = pair("train", *files, repair=True).read_raw().voxels
    mean = (grey[1].astype(float) + grey[3]) / 2
    assert np.abs(repaired[2] - mean).max() <= 1
    np.testing.assert_array_equal(np.delete(repaired, 2, 0), np.delete(grey, 2, 0))


def test_cremi_as_passed_on_is_split_100_and_25_with_validation_before_the_test(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((125, 8, 10))
    write_pair(tmp_path, "cremiB", grey, ids)
    dataset = open_dataset("cremi-b", tmp_path)
    assert [source.sections for source in dataset.subsets] == [(0, 80), (80, 100), (100, 125)]
    np.testing.assert_array_equal(dataset.test.read_raw().voxels, grey[100:])


def test_wafer4s_values_above_255_are_cut_and_told_and_those_of_others_refused(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((30, 8, 10))
    deep = grey.astype(np.uint16) + np.uint16(60)
    for name in ("wafer4", "cremiA"):
        write_pair(tmp_path, name, deep, ids)
    test = open_dataset("wafer4", tmp_path).test.read_raw()
    np.testing.assert_array_equal(test.voxels, np.minimum(deep[5:], 255))
    assert f"test: {(deep[5:] > 255).sum()} voxels above 255" in test.remarks[0]
    with pytest.raises(VolumeError, match="0 to 255"):
        open_dataset("cremi-a", tmp_path).test.read_raw()


@pytest.mark.parametrize(("end", "sections"), [("first", (0, 100)), ("last", (20, 120))])
def test_ac3_gives_either_end(tmp_path: Path, end: str, sections: tuple[int, int]) -> None:
    write_pair(tmp_path, "AC4", *drawn_neurons((100, 6, 8)))
    write_pair(tmp_path, "AC3", *drawn_neurons((120, 6, 8), seed=1))
    dataset = open_dataset("ac34", tmp_path, ac3_end=end)  # type: ignore[arg-type]
    assert [source.sections for source in dataset.subsets] == [(0, 80), (80, 100), sections]


def test_a_missing_dataset_names_the_files_and_the_same_volume_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"wafer4_inputs\.h5"):
        open_dataset("wafer4", tmp_path)
    with pytest.raises(ConfigError, match="wafer4"):
        open_dataset("wafer", tmp_path)
    files = write_pair(tmp_path, "x", *drawn_neurons())
    with pytest.raises(VolumeError, match="same content"):
        open_files(files, files, name="x")


def test_a_volume_that_finds_no_room_ends_in_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from wsi_dino.segmentation.neurons.volume_files import writing_volume\n"
        "noise = np.random.default_rng(0).integers(0, 255, (1, 300, 300), dtype=np.uint8)\n"
        "with writing_volume(Path(sys.argv[1]), 'main', (3, 300, 300), np.uint8, {}) as write:\n"
        "    for z in range(3):\n"
        "        write(z, noise)\n"
    )
    try:
        command = [sys.executable, "-c", code, str(tmp_path / "volume.h5")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1  # not by a signal: HDF5 crashes when it cannot close a file
        assert "the disk is full" in done.stderr
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
