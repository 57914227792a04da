"""Label tables: what is understood, and what is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.cohort import Cohort, CohortRow, read_cohort


def _table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_ids_stay_text_and_empty_targets_are_left_out(tmp_path: Path) -> None:
    path = _table(tmp_path, "slide_id,patient_id,ER\n007,01,1\n1e3,01,0\n12,02,\n13,03,NA\n")
    cohort = read_cohort(path, "ER")
    assert cohort.slide_ids == ("007", "1e3")
    assert cohort.patient_ids == ("01", "01")
    assert cohort.labels.tolist() == [1, 0]
    assert cohort.unlabelled == ("12", "13")
    assert cohort.conflicting_patients == ("01",)


def test_slide_is_its_own_patient_without_the_column(tmp_path: Path) -> None:
    assert read_cohort(_table(tmp_path, "slide_id,y\na,0\nb,1\n"), "y").patient_ids == ("a", "b")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (("Positive", "Negative"), ("Negative", "Positive")),
        (("tumour", "normal"), ("normal", "tumour")),
        (("mutated", "wild type"), ("wild type", "mutated")),
        (("1.0", "0.0"), ("0", "1")),
        (("10", "9", "2"), ("2", "9", "10")),
        (("b", "a", "c"), ("a", "b", "c")),
        (("True", "False"), ("False", "True")),
    ],
)
def test_class_order(tmp_path: Path, values: tuple[str, ...], names: tuple[str, ...]) -> None:
    lines = "".join(f"s{i},{value}\n" for i, value in enumerate(values))
    cohort = read_cohort(_table(tmp_path, "slide_id,y\n" + lines), "y")
    assert cohort.class_names == names
    assert [cohort.class_names[label] for label in cohort.labels] == [value.removesuffix(".0") for value in values]


@pytest.mark.parametrize("values", [("Positive", "Negative"), ("1", "0"), ("pos", "neg"), ("yes", "no"), ("1.0", "0")])
def test_task_classes_understand_numbers_and_other_words(tmp_path: Path, values: tuple[str, str]) -> None:
    path = _table(tmp_path, f"slide_id,y\na,{values[0]}\nb,{values[1]}\n")
    cohort = read_cohort(path, "y", classes=["Negative", "Positive"])
    assert cohort.class_names == ("Negative", "Positive")
    assert cohort.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "text", ["slide_id;y\na;0\nb;1\n", "slide_id\ty\r\na\t0\r\nb\t1\r\n", "﻿slide_id,y\na,0\nb,1\n"]
)
def test_separators_line_ends_and_byte_order_mark(tmp_path: Path, text: str) -> None:
    assert read_cohort(_table(tmp_path, text), "y").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide_id,ER_status\na,0\nb,1\n", ["'ER'", "ER_status"]),
        ("slide,ER\na,0\nb,1\n", ["slide_id", "slide, ER"]),
        ("slide_id,ER\na,0\nb,1\na,1\n", ["'a'", "lines 2, 4"]),
        ("slide_id,ER\na,0\n,1\n", ["slide_id is empty", "line 3"]),
        ("slide_id,ER\na,1\nb,1\n", ["only one class"]),
        ("slide_id,ER\na,\nb,\n", ["only one class"]),
        ("slide_id,ER\na,0.37\nb,1.52\n", ["0.37", "line 2", "continuous"]),
        ("slide_id,ER\n" + "".join(f"s{i},v{i}\n" for i in range(21)), ["21", "classes"]),
        ("slide_id,ER\na,Pos\nb,pos\nc,neg\n", ["'Pos' and 'pos'", "spelling"]),
        ("slide_id,ER\na,0\nb,1,2\n", ["line 3", "3 cells"]),
        ("slide_id,ER,ER\na,0,1\nb,1,0\n", ["ER", "more than once"]),
        ("slide_id,ER\n", ["at least one row"]),
        ("slide_id,ER\nä,0\nb,1\n".encode("latin-1"), ["UTF-8", "byte 12"]),
        (b"PK\x03\x04\xff\xfe", ["spreadsheet"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str | bytes, said: list[str]) -> None:
    with pytest.raises(CohortError) as caught:
        read_cohort(_table(tmp_path, text), "ER")
    assert all(part in str(caught.value) for part in said), caught.value


def test_missing_file_and_unknown_class(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no such file"):
        read_cohort(tmp_path / "none.csv", "y")
    with pytest.raises(CohortError, match=r"'maybe' \(line 3\)"):
        read_cohort(_table(tmp_path, "slide_id,y\na,0\nb,maybe\n"), "y", classes=["Negative", "Positive"])
    with pytest.raises(CohortError, match=r"'2' \(line 3\)"):
        read_cohort(_table(tmp_path, "slide_id,y\na,0\nb,2\nc,1\n"), "y", classes=["Negative", "Positive"])


def test_cohort_cannot_lose_a_class_or_double_a_slide() -> None:
    rows = (CohortRow("a", "p", "0", 0), CohortRow("b", "q", "1", 1))
    cohort = Cohort(rows, ("0", "1"), "y")
    assert cohort.counts() == {"0": 1, "1": 1}
    assert cohort.slides_of({"q"}) == ("b",)
    with pytest.raises(CohortError, match="no slide of class 1"):
        cohort.only({"a"})
    with pytest.raises(CohortError, match="more than once"):
        Cohort((*rows, rows[0]), ("0", "1"), "y")
