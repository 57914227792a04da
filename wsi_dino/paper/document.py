"""The tables in the form in which they are written: groups of columns, footnotes, what is beyond the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from wsi_dino.evaluation.published.printed_table import Column
from wsi_dino.paper.cells import Cell, Results, Row, Table, Trace, number_text
from wsi_dino.paper.kind import Figure
from wsi_dino.paper.step import ResultKey

TITLES = {
    1: "The models",
    2: "Chest X-rays: NIH ChestX-ray14 and RSNA Pneumonia",
    3: "Whole slides: Camelyon16",
    4: "Whole slides: trained on Camelyon16, tested on Camelyon17 Unseen",
    5: "CT volumes: CT-RATE",
    6: "Medical Segmentation Decathlon, tasks 1 to 5",
    7: "Medical Segmentation Decathlon, tasks 6 to 10 and the average",
    8: "Neurons in electron microscopy: CREMI",
    9: "Neurons in electron microscopy: AC3/AC4 and Wafer4",
    10: "Tumours in PET and CT: AutoPET-II and HECKTOR 2022",
}
_OF_MODELS = 1
METRICS = {
    "auc": "AUC", "acc": "accuracy", "precision": "precision", "recall": "recall", "dice": "Dice, %",
    "hd95": "HD95", "voi_split": "VOI split", "voi_merge": "VOI merge", "voi_sum": "VOI", "arand": "ARAND",
    "parameters": "parameters", "pre-training items": "pre-training items",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Columns of one dataset, side by side.

    Attributes:
        name: of the dataset, or the model facts.
        columns: of it.
    """

    name: str
    columns: Sequence[Column]

    def heading(self, column: Column) -> str:
        """Return what stands above a column."""
        metric = METRICS.get(column.metric, column.metric)
        return f"{column.dataset}: {metric}" if len({c.dataset for c in self.columns}) > 1 else metric


@dataclass(frozen=True)
class Numbered:
    """A table with its groups and footnotes.

    Attributes:
        table: the cells.
        title: in words.
        groups: columns by dataset.
        reasons: letter of each reason for a cell without a number.
    """

    table: Table
    title: str
    groups: Sequence[Group]
    reasons: Mapping[str, str]

    @property
    def number(self) -> int:
        """As the paper counts."""
        return self.table.printed.number

    @property
    def n_run(self) -> int:
        """Cells with a number of ours."""
        return sum(cell.ours is not None for row in self.table.rows for cell in row.cells.values())


@dataclass(frozen=True)
class BeyondRow:
    """One result that is in no table of the paper.

    Attributes:
        key: of what.
        figures: all of it.
        trace: where they come from.
        protocol: in words.
    """

    key: ResultKey
    figures: Mapping[str, Figure]
    trace: Trace
    protocol: str


@dataclass(frozen=True)
class Beyond:
    """Results of one dataset that are in no table of the paper."""

    dataset: str
    metrics: Sequence[str]
    rows: Sequence[BeyondRow]


def number_tables(tables: Sequence[Table]) -> list[Numbered]:
    """Group columns and give each reason a letter."""
    return [Numbered(table, TITLES[table.printed.number], _groups(table), _reasons(table)) for table in tables]


def _groups(table: Table) -> list[Group]:
    """One group a dataset; datasets with one column each stand together."""
    by_dataset: dict[str, list[Column]] = {}
    for column in table.columns:
        by_dataset.setdefault(column.dataset, []).append(column)
    if all(len(columns) == 1 for columns in by_dataset.values()) or table.printed.number == 1:
        return [Group(TITLES[table.printed.number], list(table.columns))]
    return [Group(name, columns) for name, columns in by_dataset.items()]


def _reasons(table: Table) -> dict[str, str]:
    texts = dict.fromkeys(cell.reason for row in table.rows for cell in row.cells.values() if cell.reason)
    return {text: _letter(number) for number, text in enumerate(texts)}


def _letter(number: int) -> str:
    """Return a, b ... z, aa, ab ...

    Examples:
        >>> _letter(0), _letter(25), _letter(26)
        ('a', 'z', 'aa')
    """
    tens, ones = divmod(number, 26)
    return (ascii_lowercase[tens - 1] if tens else "") + ascii_lowercase[ones]


def results_beyond(results: Results, tables: Sequence[Table]) -> list[Beyond]:
    """Return results that no table of the paper shows: one's own datasets, BCNB, other sizes and splits."""
    of_results = [table for table in tables if table.printed.number != _OF_MODELS]
    shown = {cell.result for table in of_results for row in table.rows for cell in row.cells.values() if cell.ours}
    found: dict[str, list[BeyondRow]] = {}
    for key in results.state.results:
        figures = {} if key in shown else results.figures(key)
        if figures:
            row = BeyondRow(key, figures, results.trace(key), results.protocol(key))
            found.setdefault(key.dataset, []).append(row)
    return [
        Beyond(name, list(dict.fromkeys(metric for row in rows for metric in row.figures)), rows)
        for name, rows in sorted(found.items())
    ]


def ours_text(figure: Figure) -> str:
    """Return value and interval.

    Examples:
        >>> ours_text(Figure(0.7771, 0.75, 0.8, "share", ""))
        '0.777 [0.750, 0.800]'
    """
    value = number_text(figure.value, figure.unit)
    unit = " mm" if figure.unit == "mm" else ""
    if figure.low is None or figure.high is None:
        return value + unit
    return f"{value} [{number_text(figure.low, figure.unit)}, {number_text(figure.high, figure.unit)}]{unit}"


def difference_text(cell: Cell) -> str:
    """Return the signed difference, or nothing."""
    if cell.difference is None or cell.ours is None:
        return ""
    text = number_text(abs(cell.difference), cell.ours.unit)
    is_zero = not text.strip("0.M")
    return text if is_zero else f"{'−' if cell.difference < 0 else '+'}{text}"


def conventions(numbered: Numbered) -> list[tuple[str, str, str]]:
    """Return for each column its heading, what the paper says it is, and what ours are."""
    lines = []
    for group in numbered.groups:
        for column in group.columns:
            heading = group.heading(column)
            name = (
                heading if heading.startswith(column.dataset) or not column.dataset else f"{column.dataset}: {heading}"
            )
            ours = dict.fromkeys(
                cell.ours.convention for row in numbered.table.rows if (cell := row.cells[column.name]).ours
            )
            lines.append((name, column.meaning, "; or ".join(ours) or "nothing of ours"))
    return lines


def is_comparable(column: Column) -> bool:
    """Whether the paper says which convention a column follows, so that a difference means something by itself."""
    return "is not said" not in column.meaning and column.unit != "not stated"


def count_cells(tables: Sequence[Table]) -> dict[str, int]:
    """Return how many cells have a number of ours, and how many do not."""
    cells = [cell for table in tables for row in table.rows for cell in row.cells.values()]
    n_run = sum(cell.ours is not None for cell in cells)
    return {"with a number of this run": n_run, "without": len(cells) - n_run}


def reasons_by_table(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return for each table each reason why cells have no number of ours, and how many have it."""
    rows = []
    for table in tables:
        counted = Counter(cell.reason for row in table.rows for cell in row.cells.values() if cell.reason)
        rows += [{"table": table.printed.number, "reason": reason, "cells": n} for reason, n in counted.items()]
    return rows


def row_name(row: Row) -> str:
    """Return the label, with our name where one does not see the other in it."""
    is_plain = row.encoder.replace("-", "") in row.label.lower().replace("-", "")
    return row.label if not row.encoder or is_plain else f"{row.label} ({row.encoder})"
