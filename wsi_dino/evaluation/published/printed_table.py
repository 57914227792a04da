"""The paper's tables as printed: text cells, the numbers in them, and what each column means."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from wsi_dino.errors import ResultError

FOLDER = Path(__file__).parent
SOURCE = "arXiv 2509.06467v1"
TABLE_NUMBERS = tuple(range(1, 11))
COLUMN_FIELDS = ("table", "column", "dataset", "metric", "unit", "better", "heading", "meaning")
_NUMBER = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)([KMB]?)")
_SUFFIXES = {"K": 3, "M": 6, "B": 9}
_ROW_KEYS = ("method", "block", "modality")


@dataclass(frozen=True)
class PrintedNumber:
    """A number with the digits it was printed with.

    Attributes:
        text: as printed.
        value: the number; None where NaN is printed.
        half_unit: half of its last printed digit, the most that rounding moved it.
        where: table, row and column, for messages.
    """

    text: str
    value: Decimal | None
    half_unit: Decimal
    where: str = field(default="", compare=False, repr=False)

    @property
    def number(self) -> Decimal:
        """The value of a cell that must hold one.

        Raises:
            ResultError: the cell says NaN.
        """
        if self.value is None:
            raise ResultError(f"{self.where or 'A printed cell'}: a number is needed here, got {self.text!r}.")
        return self.value


def parse_printed(text: str) -> PrintedNumber:
    """Read a number as tables print it: ``0.7771``, ``86M``, ``NaN``.

    Raises:
        ResultError: it is none.

    Examples:
        >>> parse_printed("72.4")
        PrintedNumber(text='72.4', value=Decimal('72.4'), half_unit=Decimal('0.05'))
        >>> parse_printed("1.17M").value == 1_170_000
        True
    """
    if text == "NaN":
        return PrintedNumber(text, None, Decimal(0))
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ResultError(f"{text!r} is not a number.")
    power = _SUFFIXES.get(match[2], 0)
    n_decimals = len(match[1].partition(".")[2])
    return PrintedNumber(text, Decimal(match[1]).scaleb(power), Decimal("0.5").scaleb(power - n_decimals))


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        table: number of its table.
        name: heading in our CSV file.
        dataset: whose test set; empty for text.
        metric: ``auc``, ``dice`` ...; empty for text.
        unit: ``share`` (0 to 1), ``percent``, ``bits``, ``count``, ``not stated``; empty for text.
        better: ``higher`` or ``lower``; empty where neither is.
        heading: as the text prints it; ``(lost)`` where it does not.
        meaning: in words, with what the paper leaves open.
    """

    table: int
    name: str
    dataset: str
    metric: str
    unit: str
    better: str
    heading: str
    meaning: str


@dataclass(frozen=True)
class PrintedTable:
    """One table.

    Attributes:
        number: as the paper counts.
        columns: by name.
        cells: for each row, by its name, the text of each column. A row's name is its method, with block
            or modality where the table has one: ``DINOv3-S, k-NN``.
    """

    number: int
    columns: Mapping[str, Column]
    cells: Mapping[str, Mapping[str, str]]

    @property
    def number_columns(self) -> list[Column]:
        """Columns that hold numbers."""
        return [column for column in self.columns.values() if column.unit]

    def rows(self, start: str = "", *, group: str = "", end: str = "") -> list[str]:
        """Return names of rows that start, end and are grouped so, from top to bottom."""
        return [
            name for name, cells in self.cells.items()
            if name.startswith(start) and name.endswith(end) and cells.get("group", "").startswith(group)
        ]  # fmt: skip

    def printed(self, row: str, column: str) -> PrintedNumber:
        """Return a cell that holds a number.

        Raises:
            ResultError: there is no such cell, or it holds none.
        """
        where = f"Table {self.number}, row {row!r}, column {column!r}"
        try:
            return replace(parse_printed(self.cells[row][column]), where=where)
        except KeyError:
            raise ResultError(f"{where}: there is no such cell.") from None
        except ResultError as error:
            raise ResultError(f"{where}: {error}") from None

    def value(self, row: str, column: str) -> Decimal:
        """Return the number of a cell.

        Raises:
            ResultError: there is none.
        """
        return self.printed(row, column).number


def read_rows(path: Path, fields: Iterable[str] | None = None) -> list[dict[str, str]]:
    """Read a CSV file of the published folder.

    Raises:
        ResultError: it is missing, has other columns, or a row has more or fewer cells than the header.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise ResultError(f"Reading the published tables: {path} cannot be read: {error or 'it is empty'}.") from None
    if fields is not None and header != list(fields):
        raise ResultError(f"{path}: expected the columns {', '.join(fields)}, got {', '.join(header)}.")
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise ResultError(f"{path}, line {number}: expected {len(header)} cells, got {len(line)}.")
    return [dict(zip(header, line, strict=True)) for line in lines]


def read_tables(folder: Path = FOLDER) -> dict[int, PrintedTable]:
    """Read all ten tables.

    Raises:
        ResultError: a file is missing or broken, or a number of a table is not one.
    """
    columns: dict[int, dict[str, Column]] = {number: {} for number in TABLE_NUMBERS}
    for row in read_rows(folder / "columns.csv", COLUMN_FIELDS):
        number = int(row["table"]) if row["table"].isdecimal() else 0
        if number not in columns:
            raise ResultError(f"{folder / 'columns.csv'}: there is no table {row['table']!r}.")
        columns[number][row["column"]] = Column(number, *(row[field] for field in COLUMN_FIELDS[1:]))
    return {number: _read_table(folder, number, columns[number]) for number in TABLE_NUMBERS}


def _read_table(folder: Path, number: int, columns: Mapping[str, Column]) -> PrintedTable:
    path = folder / f"table_{number:02d}.csv"
    cells: dict[str, dict[str, str]] = {}
    for row in read_rows(path, list(columns)):
        name = ", ".join(row[key] for key in _ROW_KEYS if row.get(key))
        if name in cells:
            raise ResultError(f"{path}: the row {name!r} is there twice.")
        cells[name] = row
    table = PrintedTable(number, columns, cells)
    for name, row in cells.items():
        for column in table.number_columns:
            if row[column.name]:
                table.printed(name, column.name)
    return table
