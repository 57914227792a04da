"""Camelyon16 as downloaded, whole and broken."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from cohort_folders import C16_TUMOR, TIFF, make_camelyon16, reference_lines

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.cohort import read_cohort
from wsi_dino.pathology.cohorts.camelyon16 import read_camelyon16
from wsi_dino.pathology.cohorts.cohort_table import Settings, write_labels


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c16") / "CAMELYON16"
    make_camelyon16(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_whole_download_is_399_slides_in_the_official_parts(whole: Path, tmp_path: Path) -> None:
    table = read_camelyon16(whole, Settings())
    assert Counter((row["official"], row["tumor"]) for row in table.rows) == {
        ("train", "normal"): 159, ("train", "tumor"): 111, ("test", "normal"): 80, ("test", "tumor"): 49,
    }  # fmt: skip
    assert (table.missing, table.failed_checks) == ((), ())
    assert {row["slide_id"] for row in table.rows if row["official"] == "test" and row["tumor"] == "tumor"} == {
        f"test_{number}" for number in C16_TUMOR
    }
    assert "test_049" not in {row["slide_id"] for row in table.rows}
    assert any("test_049" in remark for remark in table.remarks)
    assert all("own patient" in row["note"] for row in table.rows)
    assert all((whole / row["path"]).is_file() for row in table.rows)
    write_labels(tmp_path / "labels.csv", table)
    cohort = read_cohort(tmp_path / "labels.csv", "tumor")
    assert (cohort.class_names, cohort.counts()) == (("normal", "tumor"), {"normal": 239, "tumor": 160})


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda lines: ["NAME,LABEL,SUBTYPE,SIZE", *lines],
        lambda lines: ["label,name", *(",".join(line.split(",")[1::-1]) for line in lines)],
        lambda lines: [line.replace("test_", "Test_").replace(",", ".tif,", 1) for line in lines],
        lambda lines: [line.replace(",", ";") for line in reversed(lines)],
        lambda lines: ["\ufeff" + lines[0], *lines[1:-1], "", lines[-1]],
        lambda lines: [line for line in lines if "test_049" not in line],
    ],
    ids=["header", "columns the other way", "file names", "semicolons", "byte order mark", "without 049"],
)
def test_reference_is_understood_in_its_forms(copy: Path, rewrite: Callable[[list[str]], list[str]]) -> None:
    (copy / "testing/reference.csv").write_text("\n".join(rewrite(reference_lines())), encoding="utf-8")
    table = read_camelyon16(copy, Settings())
    assert table.counts("tumor") == {"normal": 239, "tumor": 160}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("test_001,Tumor,IDC,Macro", "test_001,Normal,,", "contradict the published ones: test_001"),
        ("test_003,Normal,,", "test_003,Tumor,IDC,Micro", "test_003 is tumor here"),
        ("test_003,Normal,,\n", "", "1 of 129 test slides have no label: test_003"),
        ("test_003,Normal,,", "test_003,Healthy,,", "line 3: expected"),
        ("test_003,Normal,,", "test_003", "line 3 has 1 cells"),
        ("test_003,Normal,,", "test_001,Normal,,", "test_001 is normal here and tumor further up"),
    ],
)
def test_wrong_reference_is_refused(copy: Path, old: str, new: str, complaint: str) -> None:
    path = copy / "testing/reference.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CohortError, match=complaint):
        read_camelyon16(copy, Settings())


def test_missing_or_renamed_reference_is_named(copy: Path) -> None:
    (copy / "testing/reference.csv").rename(copy / "testing/reference (1).csv")
    with pytest.raises(CohortError, match=r"expected testing/reference\.csv.*There is testing/reference \(1\)\.csv"):
        read_camelyon16(copy, Settings())
    with pytest.raises(CohortError, match="no such folder"):
        read_camelyon16(copy / "nowhere", Settings())


def test_partial_download_is_counted_and_its_note_says_so(copy: Path) -> None:
    (copy / "training/tumor/tumor_007.tif").unlink()
    (copy / "training/tumor/tumor_008.tif").rename(copy / "training/tumor/Tumor (8).tif")
    (copy / "testing/images/test_010.tif").write_bytes(b"")
    (copy / "training/normal/normal_005.tif").rename(copy / "training/normal/normal_005.tif.part")
    (copy / "notes.tif").write_bytes(TIFF)
    table = read_camelyon16(copy, Settings())
    assert len(table.rows) == 395
    missing = {entry.partition(" ")[0]: entry for entry in table.missing}
    assert set(missing) == {
        "training/tumor/tumor_007.tif", "training/tumor/tumor_008.tif", "testing/images/test_010.tif",
        "training/normal/normal_005.tif",
    }  # fmt: skip
    assert missing["training/tumor/tumor_007.tif"] == "training/tumor/tumor_007.tif"
    assert "Tumor (8).tif: rename it" in missing["training/tumor/tumor_008.tif"]
    assert "empty" in missing["testing/images/test_010.tif"]
    assert "not finished" in missing["training/normal/normal_005.tif"]
    assert all("4 of 399 slides are absent" in row["note"] for row in table.rows)


def test_slides_in_one_folder_are_taken_and_that_is_said(copy: Path) -> None:
    for path in sorted(copy.rglob("*.tif")):
        path.rename(copy / path.name.replace("normal_", "Normal_"))
    table = read_camelyon16(copy, Settings())
    assert (len(table.rows), table.missing) == (399, ())
    assert table.rows[0]["slide_id"] == "Normal_001"  # as `tile` will call it
    assert any("399 slides lie in other folders" in remark for remark in table.remarks)
