"""Figures that the paper prints for whole slides and radiographs, each with the average it can be of.

They are printed as published, to stand beside figures made here; nothing here reproduces them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.averaging import PrintedRow, RowCheck, check_row
from wsi_dino.evaluation.published.printed_table import FOLDER, SOURCE, PrintedTable, read_tables


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    Attributes:
        label: the encoder as the table spells it.
        encoder: its name here.
        auc, accuracy, precision, recall: as printed.
        half_unit: half of the last printed digit.
    """

    label: str
    encoder: str
    auc: float
    accuracy: float
    precision: float
    recall: float
    half_unit: float = 0.0005

    @property
    def printed(self) -> PrintedRow:
        """The row as `check_row` takes it."""
        return PrintedRow(self.accuracy, self.precision, self.recall, self.auc, self.half_unit)


@dataclass(frozen=True)
class PublishedTable:
    """One table, the tasks it belongs to, and the test slides that the text gives it.

    Attributes:
        name: as the paper numbers it.
        tasks: names of ours of the same question.
        n_positive, n_negative: slides with and without tumour of the test set.
        test_set: which slides these are.
        rows: from top to bottom.
    """

    name: str
    tasks: tuple[str, ...]
    n_positive: int
    n_negative: int
    test_set: str
    rows: tuple[PublishedRow, ...]

    def checks(self) -> list[tuple[PublishedRow, RowCheck]]:
        """Tell of each row which average of precision and recall it can be."""
        return [(row, check_row(row.printed, self.n_positive, self.n_negative)) for row in self.rows]


_ENCODERS = {
    "ResNet50 (ImageNet)": "resnet50", "UNI": "uni", "CONCH": "conch", "BiomedCLIP": "biomedclip",
    "DINOv3-S": "dinov3-s", "DINOv3-B": "dinov3-b", "DINOv3-L": "dinov3-l",
}  # fmt: skip
# tasks of ours, slides with and without tumour, which slides these are
TEST_SETS: dict[int, tuple[tuple[str, ...], int, int, str]] = {
    3: (("camelyon16-cv", "camelyon16-official"), 49, 80, "Camelyon16 test set: 49 slides with and 80 without tumour"),
    4: (("camelyon17-unseen",), 102, 222, "Camelyon17 Unseen, ITC dropped: 102 slides with and 222 without tumour"),
}
# the radiographs' table holds two datasets: of which its columns begin with this
_RSNA = (
    "rsna", 922, 3081,
    "test images of MGCA's classification split, if the paper used it: 922 with and 3,081 without pneumonia",
)  # fmt: skip


@cache
def slide_tables(folder: Path = FOLDER) -> tuple[PublishedTable, ...]:
    """Return the tables of whole-slide tasks, and that of RSNA-Pneumonia.

    Raises:
        ResultError: a table is missing or broken, or names an encoder that is not known here.
    """
    tables = read_tables(folder)
    name, positive, negative, text = _RSNA
    radiographs = PublishedTable("Table 2", (name,), positive, negative, text, _rows(tables[2], f"{name}_"))
    return (
        radiographs,
        *(
            PublishedTable(f"Table {number}", tasks, positive, negative, text, _rows(tables[number]))
            for number, (tasks, positive, negative, text) in TEST_SETS.items()
        ),
    )


def _rows(table: PrintedTable, begins: str = "") -> tuple[PublishedRow, ...]:
    names = [column.name for column in table.number_columns if column.name.startswith(begins)]
    unknown = [label for label in table.cells if label not in _ENCODERS]
    if unknown:
        raise ResultError(f"Table {table.number} has rows of no encoder known here: {', '.join(unknown)}.")
    return tuple(_row(table, label, names) for label in table.cells)


def _row(table: PrintedTable, label: str, names: Sequence[str]) -> PublishedRow:
    auc, accuracy, precision, recall = (table.value(label, name) for name in names)
    half_unit = 0.5 * 10.0 ** int(auc.as_tuple().exponent)
    return PublishedRow(
        label, _ENCODERS[label], float(auc), float(accuracy), float(precision), float(recall), half_unit
    )


def tables_of(task: str) -> list[PublishedTable]:
    """Return the tables that answer the question of a task."""
    return [table for table in slide_tables() if task in table.tasks]


def published_section(task: str) -> list[dict[str, Any]]:
    """Return what the paper printed for a task as plain values, each row with its check."""
    return [
        {"table": table.name, "source": SOURCE, "test_set": table.test_set, "rows": [
            {
                "encoder": row.encoder, "label": row.label, "auc": row.auc, "accuracy": row.accuracy,
                "precision": row.precision, "recall": row.recall, **row_check_section(check),
            }
            for row, check in table.checks()
        ]}
        for table in tables_of(task)
    ]  # fmt: skip


def row_check_section(check: RowCheck) -> Mapping[str, Any]:
    """Return a check as plain values."""
    implied = check.implied_prevalence
    return {
        "prevalence": check.prevalence,
        "implied_prevalence": None if implied is None else dict(zip(("value", "low", "high"), implied, strict=True)),
        "deviation": {fit.convention: fit.deviation for fit in check.fits},
        "verdict": {fit.convention: fit.verdict for fit in check.fits},
        "can_be": check.conclusion,
    }
