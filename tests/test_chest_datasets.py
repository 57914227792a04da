"""Readers of NIH ChestX-ray14, RSNA Pneumonia and tables: what they read, and what they refuse."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from chest_folders import NIH_HEADER, make_fake_nih14, make_fake_rsna, picture
from PIL import Image
from sklearn.model_selection import train_test_split

from wsi_dino.errors import CohortError
from wsi_dino.radiology.datasets import nih14, rsna
from wsi_dino.radiology.datasets.image_table import read_image_table
from wsi_dino.radiology.datasets.nih14 import LABELS, read_nih14
from wsi_dino.radiology.datasets.rsna import first_test_rows, mgca_subsets, read_rsna


# NIH ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cleaned", [False, True])
def test_nih_from_its_archives(cleaned: bool, tmp_path: Path) -> None:
    names = make_fake_nih14(tmp_path, 40, cleaned=cleaned)
    images = read_nih14(tmp_path)
    assert images.image_ids == tuple(names)
    assert images.label_names == LABELS
    assert images.files[0] == "images_001/images/00000001_000.png"
    assert images.patient_ids[:3] == ("1", "1", "2")
    assert Counter(images.subsets or ()) == {"train": 30, "test": 10}
    table = next(tmp_path.glob("Data_Entry*.csv")).read_text().splitlines()[1:]
    for line, target in zip(table, images.targets, strict=True):
        found = {label for label, value in zip(LABELS, target, strict=True) if value}
        assert found == set(line.split(",")[1].split("|")) - {"No Finding"}
    assert not images.unlisted
    assert not images.missing


def test_the_cleaned_table_is_taken_where_both_are(tmp_path: Path) -> None:
    make_fake_nih14(tmp_path, 40)
    text = (tmp_path / "Data_Entry_2017.csv").read_text().replace("Y,", ",")
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(text)
    assert "labels of Data_Entry_2017_v2020.csv" in read_nih14(tmp_path).remarks


def test_nih_refuses(tmp_path: Path) -> None:
    names = make_fake_nih14(tmp_path, 40)
    table, lists = tmp_path / "Data_Entry_2017.csv", tmp_path / "test_list.txt"
    whole, test = table.read_text(), lists.read_text()
    for text, message in (
        (whole.replace("No Finding", "No Findings", 1), "unknown label 'No Findings'"),
        (whole.replace("Patient ID", "Patient"), "no column 'Patient ID'"),
        (whole + whole.splitlines()[1] + "\n", "stands more than once"),
        (whole[:-50], "cut off|unknown label"),
    ):
        table.write_text(text)
        with pytest.raises(CohortError, match=message):
            read_nih14(tmp_path)
    table.write_text(whole)
    lists.write_text(f"{test}\n{names[0]}")
    with pytest.raises(CohortError, match=r"stands in train_val_list\.txt and in test_list\.txt"):
        read_nih14(tmp_path)
    lists.unlink()
    with pytest.raises(CohortError, match=r"no test_list\.txt below"):
        read_nih14(tmp_path)
    assert read_nih14(tmp_path, use_lists=False).subsets is None
    with pytest.raises(CohortError, match="not a folder"):
        read_nih14(tmp_path / "absent")


def _whole_nih(root: Path, extra_effusion: int = 0) -> None:
    """A table of 112,120 rows with the published totals, and both lists; no image."""
    n = nih14.COMPLETE
    findings: list[list[str]] = [[] for _ in range(n)]
    sick = n - nih14.TOTALS["No Finding"]
    at = 0
    for label in LABELS:
        count = nih14.TOTALS[label] + (extra_effusion if label == "Effusion" else 0)
        for _ in range(count):
            findings[at % sick].append(label)
            at += 1
    n_patients = nih14.TOTALS["patients"]
    lines = [NIH_HEADER]
    for number in range(n):
        view = "PA" if number < nih14.TOTALS["PA"] else "AP"
        labels = "|".join(findings[number]) or "No Finding"
        lines.append(f"{number:08d}_000.png,{labels},0,{number % n_patients + 1},58,M,{view},1,1,1,1")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines))
    names = [f"{number:08d}_000.png" for number in range(n)]
    (root / "train_val_list.txt").write_text("\n".join(names[: nih14.LIST_LENGTHS["train"]]))
    (root / "test_list.txt").write_text("\n".join(names[nih14.LIST_LENGTHS["train"] :]))


def test_a_complete_table_is_held_against_the_published_counts(tmp_path: Path) -> None:
    _whole_nih(tmp_path)
    images = read_nih14(tmp_path)
    assert Counter(images.subsets or ()) == {"train": 86_524, "test": 25_596}
    assert images.targets.sum(0).astype(int).tolist() == [nih14.TOTALS[label] for label in LABELS]
    _whole_nih(tmp_path, extra_effusion=1)
    with pytest.raises(CohortError, match="Effusion: 13318 instead of 13317"):
        read_nih14(tmp_path)


# RSNA --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("split", "sizes"), [("classification", (18_678, 4_003, 4_003)), ("detection", (16_010, 5_337, 5_337))]
)
def test_mgca_splits_equal_scikit_learns(split: rsna.MgcaSplit, sizes: tuple[int, ...]) -> None:
    n = rsna.COMPLETE
    test_size = 0.15 * 2 if split == "classification" else 5337 * 2
    train, rest = train_test_split(np.arange(n), test_size=test_size, random_state=0)
    test, val = train_test_split(rest, test_size=0.5, random_state=0)  # the first part is the test
    ours = np.array(mgca_subsets(n, split))
    for name, expected, size in zip(("train", "val", "test"), (train, val, test), sizes, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(ours == name), np.sort(expected), err_msg=name)
        assert len(expected) == size
    assert first_test_rows(n, split) == test[:3].tolist()


def test_rsna_from_kaggles_layout(tmp_path: Path) -> None:
    names = make_fake_rsna(tmp_path, 60)
    images = read_rsna(tmp_path)
    assert images.image_ids == tuple(sorted(names))
    assert images.targets[:, 0].sum() == 15
    by_name = dict(zip(images.image_ids, images.targets[:, 0], strict=True))
    assert all(by_name[name] == (number % 4 == 0) for number, name in enumerate(names))
    assert set(images.subsets or ()) == {"train", "val", "test"}
    assert not images.unlisted, "the unlabelled test stage is no surprise"
    assert any("one person" in remark for remark in images.remarks)
    assert read_rsna(tmp_path, split="detection").subsets != images.subsets
    with pytest.raises(CohortError, match="Did you mean 'detection'"):
        read_rsna(tmp_path, split="detections")  # type: ignore[arg-type]


def test_rsna_refuses_targets_that_contradict_each_other(tmp_path: Path) -> None:
    names = make_fake_rsna(tmp_path, 12)
    table = tmp_path / "stage_2_train_labels.csv"
    whole = table.read_text()
    table.write_text(whole + f"{names[0]},,,,,0\n")
    with pytest.raises(CohortError, match="Target 0 in one row and 1 in another"):
        read_rsna(tmp_path)
    table.write_text(whole.replace(",1\n", ",2\n", 1))
    with pytest.raises(CohortError, match="Target must be 0 or 1, got '2'"):
        read_rsna(tmp_path)


def _whole_rsna(root: Path, subsets: list[str]) -> None:
    """26,684 ids with the published positives in each subset; the first three test ids are the known ones."""
    n = rsna.COMPLETE
    positives = {"train": 4_162, "val": 928, "test": 922}
    rows = first_test_rows(n, "classification")
    known = dict(zip(rows, ("f2698fda-0477", "b76dd4b8", "5d8dbcf9"), strict=True))
    # ids around the known ones must sort as their rows do
    marks = [(-1, 0), *sorted((row, int(text[:8], 16)) for row, text in known.items()), (n, 2**32)]
    lines = ["patientId,x,y,width,height,Target"]
    for (first, low), (last, high) in pairwise(marks):
        for row in range(max(first, 0), last):
            name = known.get(row, f"{low + (row - first) * (high - low) // (last - first):08x}-z")
            target = int(positives[subsets[row]] > 0)
            positives[subsets[row]] -= target
            lines.append(f"{name},,,,,{target}")
    (root / "stage_2_train_labels.csv").write_text("\n".join(lines))


def test_a_complete_rsna_table_is_held_against_mgcas_counts(tmp_path: Path) -> None:
    _whole_rsna(tmp_path, list(mgca_subsets(rsna.COMPLETE, "classification")))
    images = read_rsna(tmp_path)
    assert Counter(images.subsets or ()) == {"train": 18_678, "val": 4_003, "test": 4_003}
    table = tmp_path / "stage_2_train_labels.csv"
    table.write_text(table.read_text().replace("f2698fda-0477", "f2698fda-0478"))
    with pytest.raises(CohortError, match="starts with f2698fda-0477: 0 instead of 1"):
        read_rsna(tmp_path)


# tables ------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "b").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b/b.png", "c.png")):
        Image.fromarray(picture(number)).save(tmp_path / "images" / name)
    return tmp_path


def _table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_every_further_column_of_0_and_1_is_a_label(folder: Path) -> None:
    table = _table(
        folder, "image,patient_id,age,Mass,Edema,view\na.png,1,61,0,1,PA\nb.png,2,1,1,,AP\nb/x.png,3,5,0,0,PA\n"
    )
    images = read_image_table(table, folder / "images")
    assert images.label_names == ("Mass", "Edema")
    np.testing.assert_array_equal(images.targets, np.array([[0, 1], [1, np.nan], [0, 0]], np.float32))
    assert images.files == ("a.png", "b/b.png", None)
    assert images.missing == ("b/x.png",)
    assert images.unlisted == ("c.png",)
    assert "age, view" in images.remarks[0]
    kept = images.settled(skip_missing=True)
    assert kept.image_ids == ("a.png", "b.png")


def test_labels_by_value_and_by_range(folder: Path) -> None:
    table = _table(folder, "image,patient_id,A,B,C,view\na.png,1,0,1,1,PA\nb/b.png,2,1,0,1,AP\nc.png,3,0,0,1,\n")
    images = read_image_table(table, folder / "images", labels=["A..B", "view=AP"])
    assert images.label_names == ("A", "B", "view=AP")
    np.testing.assert_array_equal(images.targets[:, 2], [0, 1, np.nan])
    for labels, message in ((["view=LL"], "no cell of 'view' is 'LL'"), (["a"], "no column 'a'"), (["A..Z"], "'Z'")):
        with pytest.raises(CohortError, match=message):
            read_image_table(table, folder / "images", labels=labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,Mass\na.png,0\n", "no column 'patient_id'"),
        ("file,patient_id,Mass\na.png,1,0\n", "no column 'image'"),
        ("image,patient_id,Mass\na.png,1,0\nc.png,2,2\nb/b.png,3,1\n", "got '2'"),
        ("image,patient_id,Mass\na.png,1,0\na.png,1,0\n", "stands in rows 2 and 3"),
        ("image,patient_id,Mass\n../secret.png,1,0\n", "no path inside of"),
        ("image,patient_id,Mass\n/etc/passwd,1,0\n", "no path inside of"),
        ("image,patient_id,Mass\na.png,,0\n", "patient_id is empty in row 2"),
        ("image,patient_id,Mass,subset\na.png,1,0,trian\n", "must be train, val or test, got 'trian'"),
        ("image,patient_id,age\na.png,1,61\n", "no column of 0 and 1"),
        ("image,patient_id,Mass\n", "at least one row"),
        ("image,patient_id,Mass\na.png,1\n", "has 2 cells"),
    ],
)
def test_tables_that_are_refused(text: str, message: str, folder: Path) -> None:
    with pytest.raises(CohortError, match=message):
        read_image_table(_table(folder, text), folder / "images")


def test_a_name_in_two_folders_is_refused(folder: Path) -> None:
    Image.fromarray(picture(9)).save(folder / "images" / "b" / "a.png")
    table = _table(folder, "image,patient_id,Mass\nb.png,1,0\n")
    assert read_image_table(table, folder / "images").files == ("b/b.png",)
    (folder / "images" / "d").mkdir()
    Image.fromarray(picture(9)).save(folder / "images" / "d" / "b.png")
    with pytest.raises(CohortError, match="lies in 2 folders"):
        read_image_table(table, folder / "images")


def test_a_limit_is_spread_over_the_table(tmp_path: Path) -> None:
    make_fake_nih14(tmp_path, 40)
    images = read_nih14(tmp_path).limited(8)
    assert len(images) == 8
    assert Counter(images.subsets or ()) == {"train": 6, "test": 2}
