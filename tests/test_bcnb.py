"""BCNB as downloaded, whole and broken."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cohort_folders import BCNB_HEADER, BCNB_SPLIT, bcnb_patients, make_bcnb, write_xlsx

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.cohort import read_cohort
from wsi_dino.evaluation.label_table import read_label_table
from wsi_dino.evaluation.split import read_split
from wsi_dino.mil.tasks import find_column, shipped_tasks
from wsi_dino.pathology.cohorts.bcnb import BcnbSettings, read_bcnb
from wsi_dino.pathology.cohorts.cohort_table import write_labels, write_own_split

Rows = list[list[Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bcnb") / "BCNB"
    make_bcnb(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_whole_download_has_the_published_counts(whole: Path) -> None:
    table = read_bcnb(whole, BcnbSettings())
    assert (len(table.rows), table.missing, table.failed_checks) == (1058, (), ())
    aln = Counter((row["official"], row["ALN status"] == "N0") for row in table.rows)
    assert {subset: (aln[subset, True], aln[subset, False]) for subset in BCNB_SPLIT} == BCNB_SPLIT
    assert table.rows[11]["path"] == "WSIs/12.jpg"  # not the tile of that name
    assert len(table.regions) == 21


def test_every_shipped_task_reads_the_table(whole: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    write_labels(labels, read_bcnb(whole, BcnbSettings()))
    table = read_label_table(labels)
    expected = {
        "bcnb-er": [227, 831], "bcnb-pr": [268, 790], "bcnb-her2": [781, 277], "bcnb-aln": [655, 403],
        "bcnb-ki67": [154, 904],
    }  # fmt: skip
    for name, counts in expected.items():
        task = shipped_tasks()[name]
        target = find_column(task, table.header)
        cohort = read_cohort(table, target, classes=task.classes, class_of=task.class_of(table.values(target)))
        assert list(cohort.counts().values()) == counts, name
        assert not task.cuts(table.values(target))  # the table holds classes: the task's own cut has no say


@pytest.mark.parametrize(("cut", "positive"), [(14, 904), (20, 838), (0.5, 1047)])
def test_ki67_cut_decides_and_is_noted(whole: Path, cut: float, positive: int) -> None:
    table = read_bcnb(whole, BcnbSettings(ki67_cut=cut))
    truth = sum(int(row[10]) >= cut for _, _, row in bcnb_patients())  # type: ignore[call-overload]
    assert table.counts("Ki67")["Positive"] == truth == positive
    assert all(f"{cut:g} %" in row["note"] for row in table.rows)


def test_own_split_is_one_that_mil_reads(whole: Path, tmp_path: Path) -> None:
    table = read_bcnb(whole, BcnbSettings())
    write_own_split(tmp_path / "own.csv", table)
    write_labels(tmp_path / "labels.csv", table)
    split = read_split(tmp_path / "own.csv", read_cohort(tmp_path / "labels.csv", "ER"))
    assert [len(split.folds[0].patients(subset)) for subset in ("train", "val", "test")] == [630, 210, 218]


def _rewritten(folder: Path, change: Callable[[Rows], None], percent_columns: tuple[int, ...] = ()) -> None:
    rows: Rows = [list(BCNB_HEADER), *(row for _, _, row in bcnb_patients())]
    change(rows)
    write_xlsx(folder / "patient-clinical-data.xlsx", rows, percent_columns)


def _set(row: int, column: str, value: object) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[row][BCNB_HEADER.index(column)] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set(0, "Ki67", "Ki-67"), r"no column 'Ki67'.*Did you mean 'Ki-67'"),
        (_set(0, "ALN status", "ALN Status"), "Did you mean 'ALN Status'"),
        (_set(5, "Patient ID", 1), "row 6: patient 1 stands twice"),
        (_set(5, "Patient ID", ""), "row 6: Patient ID is empty"),
        (_set(5, "Ki67", 140), "expected percentages"),
    ],
)
def test_wrong_clinical_table_is_refused(copy: Path, change: Callable[[Rows], None], complaint: str) -> None:
    _rewritten(copy, change)
    with pytest.raises(CohortError, match=complaint):
        read_bcnb(copy, BcnbSettings())


def test_ki67_shown_in_percent_is_the_same(whole: Path, copy: Path) -> None:
    def as_fractions(rows: Rows) -> None:
        for row in rows[1:]:
            row[10] /= 100

    _rewritten(copy, as_fractions, percent_columns=(10,))
    assert read_bcnb(copy, BcnbSettings()).rows == read_bcnb(whole, BcnbSettings()).rows
    _rewritten(copy, as_fractions)
    with pytest.raises(CohortError, match="expected percentages, got values from 0 to 1"):
        read_bcnb(copy, BcnbSettings())


def test_cells_that_say_no_number_are_told_and_left_empty(copy: Path) -> None:
    _rewritten(copy, _set(7, "Ki67", "<5%"))
    table = read_bcnb(copy, BcnbSettings())
    assert (table.rows[6]["Ki67"], table.rows[6]["Ki67 percent"]) == ("", "")
    assert any("7 (<5%)" in remark for remark in table.remarks)


def test_other_counts_than_published_fail(copy: Path) -> None:
    _rewritten(copy, _set(1, "ER", "Negative" if bcnb_patients()[0][2][4] == "Positive" else "Positive"))
    assert [check.what for check in read_bcnb(copy, BcnbSettings()).failed_checks] == ["ER Positive", "ER Negative"]


def test_partial_download_is_counted(copy: Path) -> None:
    (copy / "WSIs/3.jpg").unlink()
    (copy / "dataset-splitting/val_id.txt").unlink()
    table = read_bcnb(copy, BcnbSettings())
    assert table.missing == ("dataset-splitting/val_id.txt", "WSIs/3.jpg")
    assert "1 of 1058 slides are absent" in table.rows[0]["note"]


def test_missing_table_and_patient_in_two_lists(copy: Path) -> None:
    names = (copy / "dataset-splitting/val_id.txt").read_text().split()
    with (copy / "dataset-splitting/test_id.txt").open("a") as stream:
        stream.write(f"{names[0]}\n")
    with pytest.raises(CohortError, match=f"patient {names[0]} is in val and test"):
        read_bcnb(copy, BcnbSettings())
    (copy / "patient-clinical-data.xlsx").rename(copy / "patient-clinical-data.xls")
    with pytest.raises(CohortError, match=r"expected patient-clinical-data\.xlsx.*There is patient-clinical-data\.xls"):
        read_bcnb(copy, BcnbSettings())
