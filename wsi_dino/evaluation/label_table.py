"""The label table as text: a row a slide, ids checked, no target chosen."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_dino.errors import CohortError, nearest_name

_SHOWN = 5
_EMPTY = frozenset({"", "na", "n/a", "nan", "null", "#n/a", "<na>"})
_DELIMITERS = (",", ";", "\t")
_Lines = list[tuple[int, list[str]]]


@dataclass(frozen=True)
class TableRow:
    """One row as it stands in the table.

    Attributes:
        line: its number in the file, from 1.
        slide_id: name of the slide without folder and ending; always text.
        patient_id: whom the slide is of; the slide itself where the table has no such column.
        cells: text by column.
    """

    line: int
    slide_id: str
    patient_id: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class LabelTable:
    """A label table, read once.

    Attributes:
        path: where it lies, for messages.
        header: names of the columns.
        rows: in the order of the file.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[TableRow, ...]

    @property
    def has_patient_id(self) -> bool:
        """Whether it names patients."""
        return "patient_id" in self.header

    def values(self, column: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            CohortError: there is no such column.
        """
        self.require(column, "it is the target to predict")
        return [row.cells[column] for row in self.rows]

    def require(self, column: str, why: str) -> None:
        """Check that there is a column.

        Raises:
            CohortError: there is none; `why` says what it is needed for.
        """
        _require(self.path, self.header, column, why)


def read_label_table(csv_path: Path, *, unique: bool = True) -> LabelTable:
    """Read a label table as text, with no target chosen.

    Commas, semicolons or tabs separate; the encoding is UTF-8. Ids are text (``007`` stays ``007``).

    Args:
        csv_path: the table.
        unique: refuse a slide that stands twice.

    Raises:
        CohortError: no file, not UTF-8, no column slide_id, a slide twice or an empty id.
    """
    header, lines = _read_lines(csv_path)
    _require(csv_path, header, "slide_id", "every row names its slide there")
    slide = header.index("slide_id")
    patient = header.index("patient_id") if "patient_id" in header else slide
    _check_ids(csv_path, lines, slide, "slide_id", unique=unique)
    _check_ids(csv_path, lines, patient, "patient_id", unique=False)
    rows = (TableRow(n, cells[slide], cells[patient], dict(zip(header, cells, strict=True))) for n, cells in lines)
    return LabelTable(csv_path, tuple(header), tuple(rows))


def read_columns(csv_path: Path) -> dict[str, list[str]]:
    """Read any table as text, column by column, in table order; no column is asked for.

    Raises:
        CohortError: as `read_label_table` for whatever is wrong with the table itself.
    """
    header, lines = _read_lines(csv_path)
    return {name: [cells[index] for _, cells in lines] for index, name in enumerate(header)}


def is_empty(cell: str) -> bool:
    """Return whether a cell of the target means "not known".

    Examples:
        >>> is_empty("NA"), is_empty("N0")
        (True, False)
    """
    return cell.lower() in _EMPTY


def some(items: Sequence[object]) -> str:
    """Return the first few items as text, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"


def _read_lines(path: Path) -> tuple[list[str], _Lines]:
    text = _read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise CohortError(f"Reading {path}: not a table of text, line {reader.line_num} ({error}).") from error
    if len(lines) < 2:
        raise CohortError(f"Reading {path}: expected a header line and at least one row, got {len(lines)} lines.")
    header = lines[0][1]
    doubled = [name for name, n in Counter(header).items() if n > 1 and name]
    if doubled:
        raise CohortError(f"Reading {path}: column {some(doubled)} stands more than once in the header.")
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise CohortError(f"Reading {path}: line {line} has {len(cells)} cells, the header {len(header)}.")
    return header, lines[1:]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise CohortError(f"Reading the label table {path}: there is no such file.") from error
    except OSError as error:
        raise CohortError(f"Reading the label table {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        kind = "a spreadsheet or binary file" if error.object[:2] in (b"PK", b"\xd0\xcf") else "not UTF-8"
        raise CohortError(
            f"Reading the label table {path}: it is {kind} (byte {error.start}). Save it as 'CSV UTF-8'."
        ) from error


def _require(path: Path, header: Sequence[str], name: str, why: str) -> None:
    if name not in header:
        raise CohortError(
            f"Reading {path}: there is no column {name!r} ({why}).{nearest_name(name, header)} "
            f"Columns there are: {', '.join(header)}."
        )


def _check_ids(path: Path, lines: _Lines, column: int, name: str, *, unique: bool) -> None:
    where: dict[str, list[int]] = {}
    for line, cells in lines:
        where.setdefault(cells[column], []).append(line)
    if "" in where:
        raise CohortError(f"Reading {path}: {name} is empty in line {some(where[''])}. Every row needs one.")
    doubled = {slide: at for slide, at in where.items() if len(at) > 1}
    if unique and doubled:
        listed = [f"{slide!r} (lines {', '.join(map(str, at))})" for slide, at in doubled.items()]
        raise CohortError(
            f"Reading {path}: {name} must be unique, but {len(doubled)} stand more than once: {some(listed)}. "
            "Keep one row a slide."
        )
