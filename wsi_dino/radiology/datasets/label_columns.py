"""Which columns of a table are labels: those of 0 and 1, or those that were asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.evaluation.label_table import is_empty
from wsi_dino.radiology.datasets.volume_row import label_value

_SHOWN = 5
_BINARY = frozenset({"0", "1", "0.0", "1.0"})

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class LabelColumn:
    """A label: a column of 0 and 1, or one value of a column."""

    column: str
    value: str | None = None

    @property
    def name(self) -> str:
        """Name of the label."""
        return self.column if self.value is None else f"{self.column}={self.value}"

    def values(self, csv_path: Path, columns: Columns) -> np.ndarray:
        """Return float32 ``(n,)`` of 0, 1 and NaN."""
        cells = columns[self.column]
        if self.value is not None:
            of_value = [float("nan") if is_empty(cell) else float(cell == self.value) for cell in cells]
            if 1.0 not in of_value:
                known = ", ".join(sorted(set(cells))[:10])
                raise CohortError(f"Reading {csv_path}: no cell of {self.column!r} is {self.value!r}. Values: {known}.")
            return np.array(of_value, np.float32)
        where = f"Reading {csv_path}, column {self.column!r}"
        # rows are counted as in a spreadsheet, the header being row 1
        return np.array([label_value(cell, f"{where}, row {i}") for i, cell in enumerate(cells, 2)], np.float32)


def without_duplicates(
    csv_path: Path, columns: Columns, key: str, *, drop: bool
) -> tuple[Columns, tuple[str, ...]]:  # fmt: skip
    """Return the table with one row for each value of `key`, and a remark on what was dropped.

    Args:
        csv_path: the table, for messages.
        columns: its cells.
        key: column that names the image or volume of a row.
        drop: leave out rows that say what an earlier row says; without, they are an error like contradictory ones.

    Raises:
        CohortError: a value stands in two rows; both are named, and how many there are.
    """
    first: dict[str, int] = {}
    again = [(row, first[cell]) for row, cell in enumerate(columns[key]) if first.setdefault(cell, row) != row]
    says = list(zip(*columns.values(), strict=True))
    wrong = [(row, before) for row, before in again if not drop or says[row] != says[before]]
    if wrong:
        row, before = wrong[0]
        alike = says[row] == says[before]
        advice = "Keep one row each, or give --duplicates drop" if alike else "The rows differ: keep the right one"
        raise CohortError(
            f"Reading {csv_path}: {columns[key][row]!r} stands in rows {before + 2} and {row + 2} ({len(again)} rows "
            f"name what an earlier one names). {advice}."
        )
    if not again:
        return columns, ()
    gone = {row for row, _ in again}
    kept = {name: [cell for row, cell in enumerate(cells) if row not in gone] for name, cells in columns.items()}
    shown = ", ".join(dict.fromkeys(columns[key][row] for row, _ in again[:_SHOWN]))
    return kept, (f"{len(again)} rows say what an earlier one says and were dropped, as asked: {shown}",)


def choose_labels(
    csv_path: Path, columns: Columns, asked: Sequence[str], known: Collection[str]
) -> tuple[list[LabelColumn], tuple[str, ...]]:
    """Return the labels of a table, and remarks on columns that are none.

    Args:
        csv_path: the table, for messages.
        columns: its cells.
        asked: ``COLUMN``, ``FIRST..LAST`` (columns as they stand side by side), or ``COLUMN=VALUE`` (1 where the
            column holds that value, 0 where it holds another); none for every column of 0, 1 and empty cells.
        known: columns that mean something else.

    Raises:
        CohortError: there is no such column, or no label at all.
    """
    if asked:
        found = [label for text in asked for label in _asked(csv_path, columns, text)]
        return list(dict.fromkeys(found)), ()
    further = [name for name in columns if name not in known]
    chosen = [name for name in further if _is_mostly_binary(columns[name])]
    if not chosen:
        raise CohortError(
            f"Reading {csv_path}: no column of 0 and 1 beside {', '.join(name for name in columns if name in known)}. "
            "Add one a label, or name some with --labels (COLUMN=VALUE makes one of text)."
        )
    others = [name for name in further if name not in chosen]
    remark = f"columns that hold something else than 0 and 1 are no labels: {', '.join(others)}"
    return [LabelColumn(name) for name in chosen], (remark,) if others else ()


def _is_mostly_binary(cells: Sequence[str]) -> bool:
    known = [cell for cell in cells if not is_empty(cell)]
    return bool(known) and sum(cell in _BINARY for cell in known) > len(known) / 2


def _asked(csv_path: Path, columns: Columns, text: str) -> list[LabelColumn]:
    if text in columns:
        return [LabelColumn(text)]
    first, dots, last = text.partition("..")
    if dots:
        names = list(columns)
        ends = [names.index(_known(csv_path, columns, name)) for name in (first, last)]
        return [LabelColumn(name) for name in names[ends[0] : ends[1] + 1]]
    column, equals, value = text.partition("=")
    if equals:
        return [LabelColumn(_known(csv_path, columns, column), value)]
    _known(csv_path, columns, text)
    return []


def _known(csv_path: Path, columns: Columns, name: str) -> str:
    if name in columns:
        return name
    near = nearest_name(name, columns)
    raise CohortError(
        f"Reading {csv_path}: there is no column {name!r} for --labels.{near} It has {', '.join(columns)}."
    )
