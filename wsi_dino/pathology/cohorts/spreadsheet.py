"""The first sheet of an .xlsx workbook as text: enough to read a table that a publisher gives, and no more.

The format is Office Open XML (ECMA-376): a ZIP of XML parts. Formulas are not computed (their stored value
is read), dates come as numbers.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from wsi_dino.errors import CohortError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LINK = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_LARGEST_PART_BYTES = 200 * 2**20
_BUILT_IN_PERCENT = {9, 10}  # number formats 0% and 0.00%


def read_first_sheet(path: Path) -> list[list[str]]:
    """Return the rows of the first sheet, all of one length; an empty cell is an empty text.

    A cell that the workbook shows in percent comes as percent: 0.14 shown as 14% is ``14%``. Whole numbers
    come without a fraction.

    Raises:
        CohortError: no such file, or not an .xlsx workbook.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            texts, percent = _shared_texts(archive), _percent_styles(archive)
            sheet = _part(archive, _first_sheet(archive))
            rows = [dict(_cells(row, texts, percent)) for row in sheet.iter(f"{_MAIN}row")]
    except (OSError, zipfile.BadZipFile, ElementTree.ParseError, KeyError, ValueError, IndexError) as error:
        raise CohortError(
            f"Reading {path}: not an .xlsx workbook ({error}). Download it again; do not convert it."
        ) from error
    width = 1 + max((column for row in rows for column in row), default=-1)
    return [[row.get(column, "") for column in range(width)] for row in rows if any(row.values())]


def _part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if archive.getinfo(name).file_size > _LARGEST_PART_BYTES:
        raise ValueError(f"{name} is larger than {_LARGEST_PART_BYTES} bytes")
    return ElementTree.fromstring(archive.read(name))


def _first_sheet(archive: zipfile.ZipFile) -> str:
    sheet = next(_part(archive, "xl/workbook.xml").iter(f"{_MAIN}sheet"))
    links = {link.get("Id"): link.get("Target", "") for link in _part(archive, "xl/_rels/workbook.xml.rels")}
    target = links[sheet.get(_LINK)]
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _shared_texts(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    return [_text(item) for item in _part(archive, "xl/sharedStrings.xml").iter(f"{_MAIN}si")]


def _text(item: ElementTree.Element) -> str:
    """Join the runs of a rich text, without its phonetic notes."""
    runs = [node for node in item if node.tag in (f"{_MAIN}t", f"{_MAIN}r")]
    return "".join(t.text or "" for run in runs for t in run.iter(f"{_MAIN}t")).strip()


def _percent_styles(archive: zipfile.ZipFile) -> set[str]:
    """Return the numbers of the cell styles that show percent."""
    if "xl/styles.xml" not in archive.namelist():
        return set()
    styles = _part(archive, "xl/styles.xml")
    own = {int(f.get("numFmtId", 0)) for f in styles.iter(f"{_MAIN}numFmt") if "%" in f.get("formatCode", "")}
    formats = styles.find(f"{_MAIN}cellXfs")
    cells = [] if formats is None else list(formats)
    return {str(number) for number, cell in enumerate(cells) if int(cell.get("numFmtId", 0)) in own | _BUILT_IN_PERCENT}


def _cells(row: ElementTree.Element, texts: list[str], percent: set[str]) -> Iterator[tuple[int, str]]:
    column = -1
    for cell in row.iter(f"{_MAIN}c"):
        letters = re.match(r"[A-Z]+", cell.get("r", ""))
        column = _column_number(letters[0]) if letters else column + 1
        yield column, _value(cell, texts, percent)


def _column_number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, texts: list[str], percent: set[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = cell.find(f"{_MAIN}is")
        return "" if inline is None else _text(inline)
    stored = (cell.findtext(f"{_MAIN}v") or "").strip()
    if kind == "s":
        return texts[int(stored)] if stored else ""
    if kind != "n" or not stored:
        return stored
    number = float(stored)
    if cell.get("s", "0") in percent:
        return f"{number * 100:.10g}%"
    return f"{number:.10g}"
