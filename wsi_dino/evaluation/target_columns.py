"""Targets that are not one class: survival, numbers, several labels, read from the columns of a label table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.cohort import Cohort, CohortRow, Kind, read_classes
from wsi_dino.evaluation.label_table import LabelTable, TableRow, is_empty, some

CENSORED, EVENT = "censored", "event"
_EVENT = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
_RESERVED = frozenset({"fold", "subset", "patient_id", "slide_id", "target", "status", "reason", "seen_in_training"})
_GROUPS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


def read_survival(table: LabelTable, time: str, event: str) -> Cohort:
    """Read time and event of each slide's patient; a row that lacks either is left out.

    Args:
        table: the label table.
        time: column of the time to the event or to the last look, above 0 in any unit.
        event: column that says 1, true or yes when the event was seen; 0, false or no when not (censored).

    Raises:
        CohortError: no such column; a time that is no positive number; another word in the event's column; slides
            of one patient that differ; nobody with the event.
    """
    for column, why in ((time, "it is the time to the event"), (event, "it says whether the event was seen")):
        table.require(column, why)
    known = [row for row in table.rows if not (is_empty(row.cells[time]) or is_empty(row.cells[event]))]
    _check_cells(table, known, time, _positive, "a positive number")
    _check_cells(table, known, event, lambda cell: _EVENT.get(cell.lower()), "0, 1, true, false, yes or no")
    rows = [_survival_row(row, time, event) for row in known]
    _check_one_outcome(table, rows, time, event)
    return _cohort(table, rows, (CENSORED, EVENT), f"{time}, {event}", "survival", (time, event))


def _survival_row(row: TableRow, time: str, event: str) -> CohortRow:
    happened = _EVENT[row.cells[event].lower()]
    text = f"{row.cells[time]} ({EVENT if happened else CENSORED})"
    return CohortRow(row.slide_id, row.patient_id, text, int(happened), (float(row.cells[time]), happened))


def _check_one_outcome(table: LabelTable, rows: Sequence[CohortRow], time: str, event: str) -> None:
    first: dict[str, CohortRow] = {}
    for row in rows:
        earlier = first.setdefault(row.patient_id, row)
        if earlier.values != row.values:
            raise CohortError(
                f"Reading {table.path}: patient {row.patient_id} has one {time} and {event}, but slide "
                f"{earlier.slide_id} says {earlier.target}, slide {row.slide_id} {row.target}. Correct the table."
            )


def read_values(table: LabelTable, column: str) -> Cohort:
    """Read a number for each slide; folds are balanced by quarters of it.

    Raises:
        CohortError: no such column, a cell that is no finite number, or all numbers equal.
    """
    table.require(column, "it is the target to predict")
    known = [row for row in table.rows if not is_empty(row.cells[column])]
    _check_cells(table, known, column, _finite, "a finite number, with a point for decimals")
    values = np.array([float(row.cells[column]) for row in known])
    if len(values) and values.min() == values.max():
        raise CohortError(f"Reading {table.path}: every {column} is {values[0]:g}; there is nothing to predict.")
    cuts = np.quantile(values, [0.25, 0.5, 0.75]) if len(values) else np.empty(0)
    quarters = np.searchsorted(cuts, values)
    rows = [
        CohortRow(row.slide_id, row.patient_id, row.cells[column], int(quarter), (float(value),))
        for row, quarter, value in zip(known, quarters, values, strict=True)
    ]
    return _cohort(table, rows, _GROUPS, column, "regression", (column,))


def read_several_labels(table: LabelTable, columns: Sequence[str], classes: Sequence[str] | None = None) -> Cohort:
    """Read several yes-or-no labels of each slide; one that has at least one of them takes part.

    Folds are balanced by the combination of labels, those with the rarest label first.

    Args:
        table: the label table.
        columns: one a label.
        classes: the words for no and yes; None = found in each column as `read_cohort` does.

    Raises:
        CohortError: no such column, one that has not exactly two classes, or a name that is taken.
    """
    taken = sorted(_RESERVED & set(columns))
    if taken:
        raise CohortError(
            f"Reading {table.path}: a label cannot be called {taken[0]!r}, which the predictions have a column for. "
            "Rename the column."
        )
    read = {column: read_classes(table, column, classes=classes) for column in columns}
    for column, (names, labels) in read.items():
        if len(names) != 2 or len(set(labels.values())) != 2:
            found = ", ".join(dict.fromkeys(names[label] for label in labels.values())) or "no value"
            raise CohortError(
                f"Reading {table.path}, target {column!r}: one of several labels is yes or no, so its column needs "
                f"two classes; found {found}. A target of more classes is a task of its own."
            )
    values = {
        row.slide_id: tuple(float(labels.get(row.slide_id, math.nan)) for _, labels in read.values())
        for row in table.rows
    }
    known = [row for row in table.rows if not all(map(math.isnan, values[row.slide_id]))]
    group_of = _combinations(np.array([values[row.slide_id] for row in known]).reshape(len(known), len(columns)))
    rows = [
        CohortRow(row.slide_id, row.patient_id, _told(row, columns), group, values[row.slide_id])
        for row, group in zip(known, group_of, strict=True)
    ]
    names = tuple(f"combination {number}" for number in range(max(group_of, default=0) + 1))
    value_names = tuple((names[0], names[1]) for names, _ in read.values())
    return _cohort(table, rows, names, ", ".join(columns), "labels", tuple(columns), value_names)


def _told(row: TableRow, columns: Sequence[str]) -> str:
    return ", ".join("not known" if is_empty(row.cells[column]) else row.cells[column] for column in columns)


def _combinations(values: np.ndarray) -> list[int]:
    """Number the combinations of labels in the order of the rarest label, then the next rarest ..."""
    order = np.argsort(np.nansum(values == 1, axis=0), kind="stable")
    keys = [tuple((0.5 if math.isnan(v) else v) for v in row) for row in values[:, order].tolist()]
    number = {key: place for place, key in enumerate(sorted(set(keys), reverse=True))}
    return [number[key] for key in keys]


def _cohort(
    table: LabelTable, rows: Sequence[CohortRow], groups: tuple[str, ...], target: str, kind: Kind,
    columns: tuple[str, ...], value_names: tuple[tuple[str, str], ...] = (),
) -> Cohort:  # fmt: skip
    taken = {row.slide_id for row in rows}
    unlabelled = tuple(row.slide_id for row in table.rows if row.slide_id not in taken)
    try:
        return Cohort(tuple(rows), groups, target, unlabelled, kind, columns, value_names)
    except CohortError as error:
        raise CohortError(f"Reading {table.path}: {error}") from error


def _check_cells(
    table: LabelTable, rows: Sequence[TableRow], column: str, read: Callable[[str], float | None], wanted: str
) -> None:
    wrong = [f"{row.cells[column]!r} (line {row.line})" for row in rows if read(row.cells[column]) is None]
    if wrong:
        raise CohortError(
            f"Reading {table.path}, column {column!r}: expected {wanted}, got {some(wrong)}. "
            "Correct the table, or empty those cells to leave the slides out."
        )


def _finite(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _positive(cell: str) -> float | None:
    number = _finite(cell)
    return number if number is not None and number > 0 else None
