"""Which files of a folder are slides, and under which id."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.discovery import discover_slides, slide_id_of


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def _ids(folder: Path) -> list[str]:
    return [source.slide_id for source in discover_slides(folder)]


def test_nested_slides_come_sorted_and_other_files_do_not(tmp_path: Path) -> None:
    _touch(tmp_path, "b/2.svs", "a/b/1.JPEG", "3.ome.tif", "labels.csv", "x.xml", "x.json", "x.txt")
    _touch(tmp_path, ".4.svs", ".h/5.svs")
    assert _ids(tmp_path) == ["1", "2", "3"]


def test_ids_keep_inner_dots_and_leading_zeros() -> None:
    assert [slide_id_of(Path(name)) for name in ("007.svs", "a.b.c.tiff", "X.ome.tiff")] == ["007", "a.b.c", "X"]


def test_one_file_is_taken_whatever_its_extension(tmp_path: Path) -> None:
    _touch(tmp_path, "odd.slide")
    assert [(s.slide_id, s.path) for s in discover_slides(tmp_path / "odd.slide")] == [("odd", tmp_path / "odd.slide")]


def test_one_stem_twice_names_both_files(tmp_path: Path) -> None:
    _touch(tmp_path, "a/S1.svs", "b/S1.tif", "c/S2.svs")
    with pytest.raises(ConfigError) as raised:
        discover_slides(tmp_path)
    assert str(tmp_path / "a/S1.svs") in str(raised.value)
    assert str(tmp_path / "b/S1.tif") in str(raised.value)


def test_missing_and_empty_folders_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file or folder"):
        discover_slides(tmp_path / "nowhere")
    _touch(tmp_path, "labels.csv")
    with pytest.raises(ConfigError, match=r"\.svs .*\.jpg"):
        discover_slides(tmp_path)


def test_what_belongs_to_another_slide_is_none_itself(tmp_path: Path) -> None:
    _touch(tmp_path, "M.mrxs", "M/Data0001.dat", "M/Slidedat.ini", "M/preview.jpg", "v/a.jpg", "v/b.jpg", "v/other.jpg")
    (tmp_path / "v/V.vms").write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nImageFile(1,0)=b.jpg\n")
    assert _ids(tmp_path) == ["M", "V", "other"]


def test_masks_of_slides_are_none_and_masks_of_nothing_are(tmp_path: Path) -> None:
    _touch(tmp_path, "training/tumor/tumor_001.tif", "training/tumor/tumor_002.tif", "testing/test_001.tif")
    _touch(
        tmp_path,
        "masks/tumor_001_mask.tif",
        "training/tumor/tumor_002_Mask.tif",
        "testing/test_001_evaluation_mask.png",
    )
    _touch(tmp_path, "Masks/tumor_002.tif", "masks/lonely.tif", "other_mask.svs")
    assert _ids(tmp_path) == ["lonely", "other_mask", "test_001", "tumor_001", "tumor_002"]
    assert discover_slides(tmp_path)[-1].path == tmp_path / "training/tumor/tumor_002.tif"
    assert _ids(tmp_path / "masks") == ["lonely", "tumor_001_mask"]


def test_pictures_of_an_earlier_run_are_no_slides(tmp_path: Path) -> None:
    _touch(tmp_path, "S1.svs", "run/.state/x", "run/thumbnails/S1.jpg")
    assert _ids(tmp_path) == ["S1"]


def _write_dicom(path: Path, series: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    value = series.encode() + b"\0" * (len(series) % 2)
    path.write_bytes(bytes(128) + b"DICM" + b"\x20\x00\x0e\x00UI" + len(value).to_bytes(2, "little") + value)


def test_a_dicom_folder_is_one_slide_a_series(tmp_path: Path) -> None:
    for name in ("1.dcm", "2.dcm"):
        _write_dicom(tmp_path / "S1" / name, "1.2.3")
        _write_dicom(tmp_path / "both" / name, f"1.2.{name[0]}0")
    found = {source.slide_id: source.path for source in discover_slides(tmp_path)}
    assert found == {
        "S1": tmp_path / "S1",
        "1.2.10": tmp_path / "both" / "1.dcm",
        "1.2.20": tmp_path / "both" / "2.dcm",
    }


def test_symlinks_count_and_loops_end(tmp_path: Path) -> None:
    _touch(tmp_path, "store/S1.svs")
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "S2.svs").symlink_to(tmp_path / "store" / "S1.svs")
    (slides / "more").symlink_to(tmp_path / "store", target_is_directory=True)
    (slides / "loop").symlink_to(slides, target_is_directory=True)
    assert _ids(slides) == ["S1", "S2"]


def test_the_shared_slides_are_found(shared_data: Path) -> None:
    assert _ids(shared_data / "slides") == [
        "CMU-1-Small-Region",
        "CMU-1-Small-Region.derived-pyramid",
        "TCGA-CR-7395-01A-01-TS1",
        "histoprep_slide_with_ink",
    ]
