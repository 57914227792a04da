"""The published tables as data: every number against the text of the paper, and files that are broken."""

from __future__ import annotations

import csv
import re
import shutil
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import pytest

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.published.claims import Claim, CountedSum, read_entries
from wsi_dino.evaluation.published.printed_table import FOLDER, TABLE_NUMBERS, parse_printed, read_tables

_NUMBER = re.compile(r"(\d[\d.]*[KMB]?|NaN)(?= |$)")
_REFERENCE = re.compile(r" \[(\d+)\]$")


def _tables_of(text: list[str]) -> dict[int, list[list[str]]]:
    """Rows of cells under each rule of dashes, the heading line first."""
    starts = [number for number, line in enumerate(text) if re.match(r"-+(\|-+)+\|?$", line)]
    tables = {}
    for number, start in enumerate(starts, 1):
        end = start + 1
        while "|" in text[end] and end + 1 not in starts:
            end += 1
        lines = [text[start - 1], *text[start + 1 : end]]
        tables[number] = [[cell.strip() for cell in line.strip().removesuffix("|").split("|")] for line in lines]
    return tables


def _numbers(cells: list[str]) -> list[str]:
    """Numbers that open a cell: `15M image-text pairs` is `15M`; `2D Image` is none."""
    return [match[1] for cell in cells if (match := _NUMBER.match(cell))]


def _numbers_in_text(rows: list[list[str]]) -> dict[str, list[str]]:
    """Numbers by row label, with its reference, and the modality of Table 10; rows without a label go under ''."""
    found = {}
    for label, *cells in rows:
        if label.startswith("0."):  # baselines of Table 5
            found[""] = _numbers([label, *cells])
        elif _REFERENCE.search(label) and _numbers(cells):
            modality = cells[0] if cells[0] in ("CT", "PET", "CT+PET") else ""
            found[f"{label} {modality}".strip()] = _numbers(cells)
    return found


def _numbers_in_csv(number: int) -> dict[str, list[str]]:
    """The same from our file, whose Table 5 has each block in rows of its own."""
    columns = [column.name for column in read_tables()[number].number_columns]
    found: dict[str, list[str]] = defaultdict(list)
    with (FOLDER / f"table_{number:02d}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            label = f"{row['method']} [{row['reference']}] {row.get('modality', '')}".strip()
            found["" if row.get("block") == "baseline" else label] += [row[name] for name in columns if row[name]]
    return dict(found)


@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_every_number_is_the_one_in_the_text(number: int, paper_text: list[str]) -> None:
    tables = _tables_of(paper_text)
    assert len(tables) == len(TABLE_NUMBERS)
    in_text = _numbers_in_text(tables[number])
    assert _numbers_in_csv(number) == in_text
    assert list(_numbers_in_csv(number)) == list(in_text), "rows are in another order"


def test_the_text_has_as_many_numbers_as_the_files(paper_text: list[str]) -> None:
    """No cell of a table is left out: counted without looking at labels."""
    in_text = [_numbers(cells) for rows in _tables_of(paper_text).values() for cells in rows[1:]]
    in_files = [values for number in TABLE_NUMBERS for values in _numbers_in_csv(number).values()]
    assert sum(map(len, in_text)) == sum(map(len, in_files)) == 615


@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_headings_are_those_of_the_text(number: int, paper_text: list[str]) -> None:
    rows = [cell for line in _tables_of(paper_text)[number] for cell in line]
    columns = read_tables()[number].columns.values()
    lost = [column.name for column in columns if column.heading.endswith("(lost)")]
    assert len(lost) == {8: 12, 9: 8}.get(number, 0)
    for column in columns:
        for part in column.heading.split(" / "):
            if part not in ("", "(lost)", "heading row"):
                words = [part] if part in rows else re.split(r", | (?=\()", part)
                assert set(words) <= set(rows), f"{column.name}: {part}"


def test_quotes_stand_in_the_text(paper_text: list[str]) -> None:
    text = "\n".join(paper_text)
    claims, counts = read_entries(FOLDER / "claims.yaml", Claim), read_entries(FOLDER / "counts.yaml", CountedSum)
    for entry in (*claims, *counts):
        assert entry.quote in text, entry.id
    for count in counts:
        where = text.index(count.quote)
        around = text[text.rindex("\n", 0, where) : text.index("\n", where)]
        assert all(str(number) in around for number in (count.total, *count.parts)), count.id


def test_names_are_unique_and_numbers_have_meaning() -> None:
    claims = [claim.id for claim in read_entries(FOLDER / "claims.yaml", Claim)]
    assert len(claims) == len(set(claims))
    for table in read_tables().values():
        for column in table.columns.values():
            assert column.meaning
            assert bool(column.unit) == bool(column.metric)
            assert bool(column.better) == (bool(column.unit) and table.number > 1)


def test_printed_digits_are_kept() -> None:
    number = read_tables()[2].printed("BiomedCLIP", "nih14_acc")
    assert (number.text, number.value, number.half_unit) == ("0.4820", Decimal("0.482"), Decimal("0.00005"))
    assert parse_printed("1.7B").value == 1_700_000_000
    assert parse_printed("NaN").value is None


@pytest.mark.parametrize("text", ["", "n/a", "1,5", "86 M", "--", "inf", "1e3x"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ResultError, match="not a number"):
        parse_printed(text)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Files of the published tables, to be broken."""
    folder = tmp_path / "published"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("table_07.csv", "81.4", "81,4", "line 4: expected 9 cells, got 10"),
        ("table_07.csv", "81.4", "eighty", "'nnU-Net', column 'average_dice'.*'eighty' is not a number"),
        ("table_07.csv", "average_dice", "mean", "expected the columns"),
        ("table_07.csv", "V-Net,53", "3D U-Net,53", "'3D U-Net' is there twice"),
        ("columns.csv", "\n1,", "\n11,", "no table '11'"),
        ("columns.csv", "table,column", "column,table", "expected the columns"),
    ],
)
def test_broken_files_are_told(copy: Path, name: str, old: str, new: str, said: str) -> None:
    content = (copy / name).read_text(encoding="utf-8")
    assert old in content
    (copy / name).write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(ResultError, match=said) as caught:
        read_tables(copy)
    assert name.removesuffix(".csv") in str(caught.value) or "Table 7" in str(caught.value)


def test_missing_and_empty_files_are_told(copy: Path) -> None:
    (copy / "table_03.csv").write_text("", encoding="utf-8")
    with pytest.raises(ResultError, match=r"table_03\.csv"):
        read_tables(copy)
    (copy / "table_03.csv").unlink()
    with pytest.raises(ResultError, match=r"table_03\.csv.*No such file"):
        read_tables(copy)
