"""Camelyon17 as downloaded, in its older and newer form, whole and broken."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from cohort_folders import ITC, make_camelyon17, node

from wsi_dino.errors import CohortError
from wsi_dino.pathology.cohorts.camelyon17 import Camelyon17Settings, read_camelyon17

DROP = Camelyon17Settings()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c17")
    make_camelyon17(folder / "old")
    return folder / "old"


@pytest.fixture
def copy(old: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(old, tmp_path / "copy"))


def test_older_and_newer_download_give_the_same_table(old: Path, tmp_path: Path) -> None:
    make_camelyon17(tmp_path, new=True)
    first, second = read_camelyon17(old, DROP), read_camelyon17(tmp_path, DROP)
    assert [dict(row, path="") for row in first.rows] == [dict(row, path="") for row in second.rows]
    assert first.missing == second.missing == first.failed_checks == second.failed_checks == ()


def test_counts_are_the_published_ones(old: Path) -> None:
    table = read_camelyon17(old, DROP)
    per_centre = Counter((row["centre"], row["tumor"]) for row in table.rows)
    kept = {"0": (64, 25), "1": (58, 35), "2": (75, 23), "3": (60, 32), "4": (61, 31)}
    assert {c: (per_centre[c, "normal"], per_centre[c, "tumor"]) for c in kept} == kept
    subsets = {"attrimil": (96, 44, 222, 102), "strict_centre": (121, 63, 197, 83)}
    kinds = [("seen", "normal"), ("seen", "tumor"), ("unseen", "normal"), ("unseen", "tumor")]
    for scheme, counts in subsets.items():
        found = Counter((row[scheme], row["tumor"]) for row in table.rows)
        assert tuple(found[kind] for kind in kinds) == counts
    assert not {row["slide_id"] for row in table.rows} & set(map(node, ITC))
    assert {row["patient_id"] for row in table.rows} == {f"patient_{p:03}" for p in range(100)}


@pytest.mark.parametrize(
    ("policy", "normal", "tumor"), [("drop", 318, 146), ("negative", 354, 146), ("positive", 318, 182)]
)
def test_itc_policy_decides_and_stands_in_each_row(old: Path, policy: str, normal: int, tumor: int) -> None:
    table = read_camelyon17(old, Camelyon17Settings.model_validate({"itc": policy}))
    assert table.counts("tumor") == {"normal": normal, "tumor": tumor}
    assert all(f"ITC policy: {policy}" in row["note"] for row in table.rows)
    assert table.failed_checks == ()


def test_centre_of_the_file_wins_over_the_patient_number(tmp_path: Path) -> None:
    make_camelyon17(tmp_path, new=True)
    path = tmp_path / "stages.csv"
    path.write_text(path.read_text().replace("patient_050_node_1.tif,negative,2", "patient_050_node_1.tif,negative,4"))
    rows = {row["slide_id"]: row for row in read_camelyon17(tmp_path, DROP).rows}
    assert rows["patient_050_node_1"]["centre"] == "4"
    assert rows["patient_050_node_1"]["strict_centre"] == "seen"
    assert rows["patient_050_node_2"]["centre"] == "2"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("patient_004_node_4.tif,itc", "patient_004_node_4.tif,negative"), "patient_004_node_4 is negative here"),
        (("patient_099_node_4.tif,negative\n", ""), "1 of 500 slides have no stage: patient_099_node_4"),
        (("patient_099_node_4.tif,negative", "patient_099_node_4.tif,pN0"), "expected negative, itc, micro, macro"),
        (("patient_099_node_4.tif,", "patient_099_node_3.tif,"), "a second time"),
        (("patient,stage", "case,stage"), "expected the header patient,stage"),
    ],
)
def test_wrong_stages_are_refused(copy: Path, change: tuple[str, str], complaint: str) -> None:
    path = copy / "training/stage_labels.csv"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    with pytest.raises(CohortError, match=complaint):
        read_camelyon17(copy, DROP)


def test_missing_table_names_both_forms(copy: Path) -> None:
    (copy / "training/stage_labels.csv").rename(copy / "training/stage-labels.csv")
    with pytest.raises(CohortError, match=r"stages\.csv or training/stage_labels\.csv.*There is training/stage-labels"):
        read_camelyon17(copy, DROP)


def test_archive_that_was_not_unpacked_is_named(copy: Path) -> None:
    (copy / "training/center_0/patient_003_node_0.tif").rename(copy / "training/center_0/patient_003_node_0.zip")
    table = read_camelyon17(copy, DROP)
    assert table.missing == (
        "training/center_0/patient_003_node_0.tif (there is training/center_0/patient_003_node_0.zip: not unpacked, "
        "or not finished)",
    )


def test_slide_that_nobody_could_read_may_be_absent(copy: Path) -> None:
    (copy / "training/center_2/patient_052_node_1.tif").unlink()
    table = read_camelyon17(copy, DROP)
    assert table.missing == table.failed_checks == ()
    assert len(table.rows) == table.n_expected == 463
    assert any("patient_052_node_1" in remark for remark in table.remarks)


def test_slides_without_public_label_are_told(copy: Path) -> None:
    (copy / "testing").mkdir()
    (copy / "testing/patient_100_node_0.tif").write_bytes(b"x")
    table = read_camelyon17(copy, DROP)
    assert len(table.rows) == 464
    assert any("1 slides of the test part" in remark for remark in table.remarks)
