"""The shipped splits: complete, without leaks, without labels, and what the code makes today."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from cohort_folders import C16_TUMOR, ITC, node

from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.evaluation.split import Split, make_folds, make_repeats, read_split

_FOLDER = Path(__file__).resolve().parent.parent / "data_splits"
_FILES = sorted(_FOLDER.glob("*/*.csv"))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _camelyon16(prefix: str = "") -> Cohort:
    names = [f"normal_{n:03}" for n in range(1, 161) if n != 86] + [f"tumor_{n:03}" for n in range(1, 112)]
    names = [name for name in [*names, *(f"test_{n:03}" for n in range(1, 131) if n != 49)] if name.startswith(prefix)]
    tumor = [name.startswith("tumor") or (name[5:] in C16_TUMOR and name.startswith("test")) for name in names]
    rows = [CohortRow(name, name, str(is_tumor), int(is_tumor)) for name, is_tumor in zip(names, tumor, strict=True)]
    return Cohort(tuple(rows), ("normal", "tumor"), "tumor")


def test_every_file_is_described() -> None:
    readme = (_FOLDER / "README.md").read_text(encoding="utf-8")
    assert _FILES
    assert [p for p in _FILES if f"`{p.relative_to(_FOLDER).as_posix()}`" not in readme] == []


@pytest.mark.parametrize("path", _FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_ids_and_subsets_only_and_nobody_on_two_sides(path: Path) -> None:
    rows = _rows(path)
    assert set(rows[0]) <= {"fold", "slide_id", "patient_id", "subset"}
    assert {row["subset"] for row in rows} in ({"train", "val", "test"}, {"seen", "unseen"})
    for unit in {"slide_id", "patient_id"} & set(rows[0]):
        places = {(row.get("fold"), row[unit], row["subset"]) for row in rows}
        assert max(Counter(place[:2] for place in places).values()) == 1
    assert len({(row.get("fold"), row["slide_id"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(("name", "prefix", "sizes"), [("official", "", (236, 34, 129)), ("cv", "test", (90, 13, 26))])
def test_camelyon16_folds_fit_the_cohort_and_are_what_the_code_makes(
    name: str, prefix: str, sizes: tuple[int, int, int]
) -> None:
    cohort = _camelyon16(prefix)
    shipped = read_split(_FOLDER / f"camelyon16/{name}.csv", cohort)
    made: Split
    if name == "official":
        subset_of = {s: "test" if s.startswith("test") else "train" for s in cohort.slide_ids}
        made = make_repeats(cohort, subset_of, 5, 0, name)
        assert len({fold.test for fold in shipped}) == 1
        assert len({fold.val for fold in shipped}) == 5
    else:
        made = make_folds(cohort, 5, 0)
        assert sorted(p for fold in shipped for p in fold.test) == sorted(cohort.slide_ids)
    assert shipped.fingerprint == made.fingerprint
    assert tuple(len(shipped.folds[0].patients(subset)) for subset in ("train", "val", "test")) == sizes


@pytest.mark.parametrize(
    ("name", "first_seen", "counts"), [("attrimil", 70, (140, 324)), ("strict-centre", 60, (184, 280))]
)
def test_camelyon17_subsets_are_complete(name: str, first_seen: int, counts: tuple[int, int]) -> None:
    rows = _rows(_FOLDER / f"camelyon17/{name}.csv")
    everyone = {f"patient_{p:03}_node_{n}" for p in range(100) for n in range(5)} - set(map(node, ITC))
    assert {row["slide_id"] for row in rows} == everyone
    for row in rows:
        assert row["patient_id"] == row["slide_id"][:11]
        assert (row["subset"] == "seen") == (int(row["patient_id"][-3:]) >= first_seen)
    found = Counter(row["subset"] for row in rows)
    assert (found["seen"], found["unseen"]) == counts
