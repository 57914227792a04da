"""CT-RATE and tables of volumes: everything odd about them, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from ct_fixtures import make_fake_ct_rate

from wsi_dino.errors import CohortError
from wsi_dino.radiology.datasets.ct_rate import LABELS, read_ct_rate
from wsi_dino.radiology.datasets.volume_row import path_within, settle_missing
from wsi_dino.radiology.datasets.volume_table import read_volume_table


@pytest.fixture
def rate(tmp_path: Path) -> Path:
    make_fake_ct_rate(tmp_path / "rate", 6, 4)
    return tmp_path / "rate"


def _edit(path: Path, change: str, by: str) -> None:
    text = path.read_text()
    assert change in text
    path.write_text(text.replace(change, by, 1))


def test_ct_rate_is_read_with_everything_odd_about_it(rate: Path) -> None:
    table = read_ct_rate(rate)
    rows = {row.volume_id: row for row in table.rows}
    assert table.label_names == LABELS
    assert len(LABELS) == 18
    assert table.left_out == {"train_5_a_1": "no chest"}
    assert {row.subset for row in table.rows} == {"train", "test"}
    assert (rows["train_2_a_1"].scan_id, rows["train_2_a_2"].scan_id) == ("train_2_a", "train_2_a")
    assert rows["train_3_a_1"].patient_id == rows["train_3_b_1"].patient_id == "train_3"
    assert "train_fixed" in rows["train_4_a_1"].path.parts
    assert "train" in rows["train_1_a_1"].path.parts
    assert all(row.path.is_file() for row in table.rows)
    assert rows["valid_1_a_1"].spacing_mm == (2.5, 0.8, 0.8)
    assert rows["valid_1_a_1"].rescale is not None
    assert rows["valid_1_a_1"].rescale.intercept == -1024
    assert read_ct_rate(rate / "dataset").rows[0].volume_id == table.rows[0].volume_id
    with (rate / "dataset/multi_abnormality_labels/valid_predicted_labels.csv").open() as stream:
        expected = {row["VolumeName"][:-7]: [float(row[name]) for name in LABELS] for row in csv.DictReader(stream)}
    assert {name: list(rows[name].targets) for name in expected} == expected


def test_labels_keep_our_order_whatever_the_order_of_the_columns(rate: Path) -> None:
    path = rate / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    before = read_ct_rate(rate).targets
    with path.open() as stream:
        rows = list(csv.reader(stream))
    order = [0, *reversed(range(1, 19))]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([[row[i] for i in order] for row in rows])
    np.testing.assert_array_equal(read_ct_rate(rate).targets, before)


def test_a_release_can_be_asked_for(rate: Path) -> None:
    original = {row.volume_id: row.path for row in read_ct_rate(rate, release="original").rows}
    assert "train_fixed" not in original["train_4_a_1"].parts
    assert all("_fixed" in row.path.parts[-4] for row in read_ct_rate(rate, release="fixed").rows)


def test_missing_metadata_is_told_and_a_wrong_row_is_its_volumes_trouble(rate: Path) -> None:
    metadata = rate / "dataset/metadata/validation_metadata.csv"
    _edit(metadata, "valid_1_a_1.nii.gz,SIEMENS,1", "valid_1_a_1.nii.gz,SIEMENS,one")
    _edit(metadata, "valid_2_a_1", "valid_9_a_1")
    table = read_ct_rate(rate)
    rows = {row.volume_id: row for row in table.rows}
    assert "makes no sense" in rows["valid_1_a_1"].trouble
    assert rows["valid_2_a_1"].rescale is None
    assert any("1 volumes have no row in validation_metadata.csv" in remark for remark in table.remarks)
    metadata.unlink()
    assert any("validation_metadata.csv is not there" in remark for remark in read_ct_rate(rate).remarks)


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ("Hiatal hernia", "Hernia", "lacks the column Hiatal hernia"),
        ("train_3_b_1", "train_3_a_1", "stands in row"),
        ("train_1_a_1", "scan-one", "expected a name like train_1_a_1"),
        (",1,", ",2,", "a label is 0, 1 or empty"),
    ],
)
def test_wrong_label_tables_of_ct_rate_are_refused(rate: Path, change: str, by: str, message: str) -> None:
    _edit(rate / "dataset/multi_abnormality_labels/train_predicted_labels.csv", change, by)
    with pytest.raises(CohortError, match=message):
        read_ct_rate(rate)


def test_files_without_a_row_and_rows_without_a_file_are_counted(rate: Path) -> None:
    there = rate / "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz"
    there.rename(there.with_name("train_1_a_7.nii.gz"))
    table = read_ct_rate(rate)
    assert table.unlabelled == ("train_1_a_7",)
    failing = settle_missing(table, skip=False)
    assert failing.missing == ("train_1_a_1",)
    assert len(failing.rows) == len(table.rows)
    skipping = settle_missing(table, skip=True)
    assert len(skipping.rows) == len(table.rows) - 1
    assert skipping.left_out["train_1_a_1"] == "file missing"


# tables ------------------------------------------------------------------------------------------
def _table(folder: Path, header: str, *rows: str) -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_table_with_all_columns(tmp_path: Path) -> None:
    path = _table(
        tmp_path, "volume,patient_id,scan_id,subset,rescale_slope,rescale_intercept,spacing_z_mm,spacing_y_mm,"
        "spacing_x_mm,size,Mass,Nodule",
        "a/x.nii.gz,p1,s1,train,1,-1024,2.5,0.7,0.6,12.5,1,", "b,p2,s2,validation,,,,,,3,0,1",
    )  # fmt: skip
    table = read_volume_table(path, tmp_path, baselines=["size"])
    first, second = table.rows
    assert table.label_names == ("Mass", "Nodule")
    assert (first.volume_id, first.scan_id, first.spacing_mm) == ("a/x", "s1", (2.5, 0.7, 0.6))
    assert np.isnan(first.targets[1])
    assert second.rescale is None
    assert [row.subset for row in table.rows] == ["train", "val"]
    assert first.baselines == {"size": 12.5}


_HEAD = "volume,patient_id,Mass"


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("file,patient_id,Mass", ["a.nii,p,1"], "no column 'volume'"),
        ("volume,patient,Mass", ["a.nii,p,1"], "no column 'patient_id'.*Did you mean"),
        ("volume,patient_id", ["a.nii,p"], "no column of 0 and 1"),
        (_HEAD, ["a.nii,p,1", "a.nii,p,0"], "stands in rows 2 and 3"),
        (_HEAD, ["a/b.nii,p,1", "a__b.nii,q,0"], r"'a/b' \(row 2\) and 'a__b' \(row 3\) would be one file"),
        (_HEAD, ["../a.nii,p,1"], "no path inside"),
        (_HEAD, ["/etc/passwd,p,1"], "no path inside"),
        (_HEAD, ["a/../../b.nii,p,1"], "no path inside"),
        (_HEAD, ["a.nii,,1"], "patient_id is empty"),
        (_HEAD, ["a.nii,p,1", "b.nii,p,0", "c.nii,q,2"], "a label is 0, 1 or empty"),
        (_HEAD + ",subset", ["a.nii,p,1,train", "b.nii,p,0,test"], "p is in both train and test"),
        (_HEAD + ",subset", ["a.nii,p,1,holdout"], "subset must be train, val or test"),
        (_HEAD + ",rescale_slope,rescale_intercept", ["a.nii,p,1,x,0"], "expected a number, got 'x'"),
    ],
)
def test_wrong_tables_are_refused(header: str, rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=message):
        read_volume_table(_table(tmp_path, header, *rows), tmp_path)


def test_a_volume_without_any_label_is_left_out_and_said(tmp_path: Path) -> None:
    table = read_volume_table(_table(tmp_path, _HEAD, "a.nii,p,1", "b.nii,q,", "c.nii,r,0"), tmp_path)
    assert table.left_out == {"b": "no label"}
    assert len(table.rows) == 2


def test_none_of_the_volumes_there_is_an_error(tmp_path: Path) -> None:
    table = read_volume_table(_table(tmp_path, _HEAD, "a.nii,p,1"), tmp_path)
    with pytest.raises(CohortError, match="none of its 1 volumes is there"):
        settle_missing(table, skip=True)


def test_paths_stay_inside(tmp_path: Path) -> None:
    assert path_within(tmp_path, "a/./b.nii", "here") == tmp_path / "a/./b.nii"
    for wrong in ("", "..", "a\0b"):
        with pytest.raises(CohortError):
            path_within(tmp_path, wrong, "here")
