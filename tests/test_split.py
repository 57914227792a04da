"""Folds by patient: complete, stratified, reproducible, and without leaks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import SplitError
from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.evaluation.split import SUBSETS, Fold, make_folds, make_repeats, read_sides, read_split, write_split


def _cohort(counts: tuple[int, ...], slides_each: int = 1) -> Cohort:
    rows = [
        CohortRow(f"s{label}-{patient}-{slide}", f"p{label}-{patient}", str(label), label)
        for label, n in enumerate(counts)
        for patient in range(n)
        for slide in range(slides_each)
    ]
    return Cohort(tuple(rows), tuple(map(str, range(len(counts)))), "y")


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(5, 60), min_size=2, max_size=4),
    k=st.integers(2, 5),
    seed=st.integers(0, 10**6),
    slides_each=st.integers(1, 3),
)
def test_every_patient_once_in_test_and_every_class_everywhere(
    counts: list[int], k: int, seed: int, slides_each: int
) -> None:
    cohort = _cohort(tuple(counts), slides_each)
    split = make_folds(cohort, k, seed)
    assert sorted(p for fold in split for p in fold.test) == sorted(cohort.patients)
    label_of = {row.patient_id: row.label for row in cohort}
    sizes = [len(fold.test) for fold in split]
    assert max(sizes) - min(sizes) <= 1
    for fold in split:
        assert sorted(fold.train + fold.val + fold.test) == sorted(cohort.patients)
        for subset in SUBSETS:
            assert {label_of[p] for p in fold.patients(subset)} == set(range(len(counts)))
        for label, n in enumerate(counts):
            assert abs(sum(label_of[p] == label for p in fold.test) - n / k) < 1


def test_shares_are_seven_one_two() -> None:
    for fold in make_folds(_cohort((120, 80)), 5, 0):
        assert (len(fold.train), len(fold.val), len(fold.test)) == (140, 20, 40)


def test_row_order_does_not_matter_and_seed_does() -> None:
    cohort = _cohort((30, 20), 2)
    rows = list(cohort.rows)
    random.Random(1).shuffle(rows)
    assert make_folds(replace(cohort, rows=tuple(rows)), 5, 7) == make_folds(cohort, 5, 7)
    assert make_folds(cohort, 5, 8).fingerprint != make_folds(cohort, 5, 7).fingerprint


def test_mixed_patients_are_a_stratum() -> None:
    rows = [CohortRow(f"m{i}-{label}", f"m{i}", str(label), label) for i in range(10) for label in (0, 1)]
    cohort = Cohort((*_cohort((10, 10)).rows, *rows), ("0", "1"), "y")
    for fold in make_folds(cohort, 5, 0):
        assert sum(p.startswith("m") for p in fold.test) == 2


@pytest.mark.parametrize(
    ("train", "val", "test"), [("ab", "c", "a"), ("ab", "b", "c"), ("aa", "b", "c"), ("ab", "", "c")]
)
def test_leaking_fold_cannot_be_made(train: str, val: str, test: str) -> None:
    with pytest.raises(SplitError):
        Fold(tuple(train), tuple(val), tuple(test))


def test_too_few_patients_of_a_class_are_named() -> None:
    with pytest.raises(SplitError, match=r"class '1' has 4 patients.*--folds 4"):
        make_folds(_cohort((40, 4)), 5, 0)
    with pytest.raises(SplitError, match="At least 3"):
        make_folds(_cohort((40, 2)), 2, 0)
    with pytest.raises(SplitError, match="at least 2"):
        make_folds(_cohort((40, 20)), 1, 0)
    # many slides of few patients are still few patients
    with pytest.raises(SplitError, match="has 2 patients"):
        make_folds(_cohort((20, 2), slides_each=10), 5, 0)


def test_written_split_is_read_back(tmp_path: Path) -> None:
    cohort = _cohort((12, 9), 2)
    split = make_folds(cohort, 3, 4)
    write_split(tmp_path / "s.csv", split)
    assert read_split(tmp_path / "s.csv", cohort).fingerprint == split.fingerprint
    first = (tmp_path / "s.csv").read_bytes()
    write_split(tmp_path / "s.csv", split)
    assert (tmp_path / "s.csv").read_bytes() == first


def _small() -> tuple[Cohort, list[str]]:
    lines = [f"0,p{label}-{n},{subset}" for label in (0, 1) for n, subset in enumerate(("train", "val", "test"))]
    return _cohort((3, 3), 2), lines


def _read(tmp_path: Path, lines: list[str], cohort: Cohort, header: str = "fold,patient_id,subset") -> object:
    path = tmp_path / "s.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return read_split(path, cohort)


def test_split_by_slide_id(tmp_path: Path) -> None:
    cohort, lines = _small()
    by_patient = _read(tmp_path, lines, cohort)
    slides = [
        line.replace(",p", ",s").replace(f",{s}", f"-{i},{s}")
        for line in lines
        for i in (0, 1)
        for s in [line.split(",")[2]]
    ]
    by_slide = _read(tmp_path, slides, cohort, "fold,slide_id,subset")
    assert by_slide.fingerprint == by_patient.fingerprint  # type: ignore[attr-defined]
    leak = [slides[0].replace("train", "test"), *slides[1:]]
    with pytest.raises(SplitError, match=r"p0-0 stands in both train and test"):
        _read(tmp_path, leak, cohort, "fold,slide_id,subset")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines, "0,p0-0,test"], "p0-0 stands in both"),
        (lambda lines: [*lines, "0,p0-9,test"], "p0-9"),
        (lambda lines: [line for line in lines if "p0-0" not in line] + ["0,p0-0,train"][:0], "p0-0|class"),
        (lambda lines: [line.replace("test", "holdout") for line in lines], "holdout"),
        (lambda lines: [line.replace("p1-2,test", "p1-2,train") for line in lines], "test .* no slide of class 1"),
        (lambda lines: [line.replace("val", "train") for line in lines], "val has no patient"),
    ],
)  # fmt: skip
def test_bad_split_files_are_refused(tmp_path: Path, change: object, said: str) -> None:
    cohort, lines = _small()
    with pytest.raises(SplitError, match=said):
        _read(tmp_path, change(lines), cohort)  # type: ignore[operator]


def test_missing_column_and_file(tmp_path: Path) -> None:
    cohort, lines = _small()
    with pytest.raises(SplitError, match="expected the columns"):
        _read(tmp_path, lines, cohort, "fold,patient,subset")
    with pytest.raises(SplitError, match="no such file"):
        read_split(tmp_path / "none.csv", cohort)


def test_folds_are_not_all_alike() -> None:
    tests = [fold.test for fold in make_folds(_cohort((50, 50)), 5, 0)]
    sorted_tests = np.array_split(sorted(p for test in tests for p in test), 5)
    assert [sorted(test) for test in tests] != [list(part) for part in sorted_tests]


def test_repeats_share_the_test_set_and_draw_their_own_validation() -> None:
    cohort = _cohort((60, 30))
    subset_of = {patient: "test" if place % 3 == 0 else "train" for place, patient in enumerate(cohort.patients)}
    split = make_repeats(cohort, subset_of, 4, 0, "official")
    assert {fold.test for fold in split} == {tuple(p for p, subset in subset_of.items() if subset == "test")}
    assert len({fold.val for fold in split}) == 4
    assert make_repeats(cohort, subset_of, 2, 0, "official").folds == split.folds[:2]
    for fold in split:
        assert set(fold.train) | set(fold.val) == {p for p, subset in subset_of.items() if subset == "train"}
        assert len(fold.val) == round(len(fold.train + fold.val) / 8)


def test_repeats_keep_validation_that_is_stated() -> None:
    cohort = _cohort((30, 30))
    subset_of = {patient: SUBSETS[place % 3] for place, patient in enumerate(cohort.patients)}
    split = make_repeats(cohort, subset_of, 3, 5, "own")
    assert all(fold.subset_of() == subset_of for fold in split)


def test_repeats_without_a_side_or_a_class_are_refused() -> None:
    cohort = _cohort((30, 30))
    with pytest.raises(SplitError, match="subset test"):
        make_repeats(cohort, dict.fromkeys(cohort.patients, "train"), 2, 0, "official")
    one_class = {row.patient_id: "test" if row.label else "train" for row in cohort}
    with pytest.raises(SplitError, match="no slide of class"):
        make_repeats(cohort, one_class, 2, 0, "official")


def test_sides_of_a_table_are_read_whatever_the_target(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("fold,slide_id,subset\n1,S1,train\n1,S2,train\n0,S1,test\n")
    assert read_sides(path, {"S1": "P1", "S2": "P1"}) == [{"P1": "test"}, {"P1": "train"}]
    path.write_text("fold,slide_id,subset\n0,S1,train\n0,S2,val\n")
    with pytest.raises(SplitError, match="line 3: in fold 0 patient P1 stands in both train and val"):
        read_sides(path, {"S1": "P1", "S2": "P1"})
