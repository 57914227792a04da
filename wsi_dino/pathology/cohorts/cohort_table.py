"""What the reader of a public cohort returns, and how the readers are found: one file each in this folder."""

from __future__ import annotations

import csv
import importlib
import io
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from wsi_dino.provenance import write_text_atomically

SHOWN = 5


class Settings(BaseModel):
    """What may be chosen when a cohort is read: each field becomes an option of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Check:
    """A number that the publisher of a cohort states, beside the one that was counted."""

    what: str
    expected: int
    found: int

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        return self.expected == self.found


@dataclass(frozen=True)
class CohortTable:
    """A cohort read from its official files.

    Attributes:
        columns: of the label table; ``slide_id, patient_id, centre, cohort`` first, ``path, note`` last.
        rows: one a slide that is there, in a fixed order; text by column. ``note`` is what every report
            on the slide must say; ``path`` is relative to the folder that was read.
        n_expected: slides of the whole cohort.
        missing: what is expected and absent, with what stands in its place where something does.
        checks: counts; only of a cohort that is whole.
        remarks: what else was seen.
        split: the cohort's own ``train``, ``val`` or ``test`` of each patient, where it states all three.
        regions: for slides that have one, the file with polygons of their tumour (`read_regions`).
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    n_expected: int
    missing: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()
    split: Mapping[str, str] = field(default_factory=dict)
    regions: Mapping[str, Path] = field(default_factory=dict)

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        """Counts that are not the publisher's."""
        return tuple(check for check in self.checks if not check.ok)

    @property
    def notes(self) -> tuple[str, ...]:
        """The different notes of the rows."""
        return tuple(dict.fromkeys(row["note"] for row in self.rows if row["note"]))

    def counts(self, column: str) -> dict[str, int]:
        """Count the rows of each value of a column; rows without one are not counted."""
        values = [row[column] for row in self.rows if row[column]]
        return {value: values.count(value) for value in sorted(set(values))}


@dataclass(frozen=True)
class CohortReader:
    """How a cohort is read.

    Attributes:
        name: as typed on the command line.
        title: its name and what it holds, one line.
        settings: what may be chosen.
        read: reads a folder as downloaded.
        targets: columns whose values are counted for the eye.
    """

    name: str
    title: str
    settings: type[Settings]
    read: Callable[[Path, Any], CohortTable]
    targets: tuple[str, ...]


@cache
def cohort_readers() -> dict[str, CohortReader]:
    """Return the readers of all cohorts by name: every file of this folder that defines ``READER``."""
    package = importlib.import_module("wsi_dino.pathology.cohorts")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    readers = [module.READER for module in modules if hasattr(module, "READER")]
    return {reader.name: reader for reader in sorted(readers, key=lambda reader: reader.name)}


def with_partial_note(table: CohortTable) -> CohortTable:
    """Say in the note of every row that slides are missing, so that a figure on a part is not taken for one on all."""
    n_missing = table.n_expected - len(table.rows)
    if not table.missing or n_missing < 1:
        return table
    text = f"The download is partial: {n_missing} of {table.n_expected} slides are absent."
    rows = tuple({**row, "note": f"{row['note']} {text}".strip()} for row in table.rows)
    return replace(table, rows=rows, checks=())


def write_labels(path: Path, table: CohortTable) -> None:
    """Write the label table that `read_cohort` reads, atomically.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_text_atomically(path, _csv(table.columns, [[row[c] for c in table.columns] for row in table.rows]))


def write_own_split(path: Path, table: CohortTable) -> None:
    """Write the cohort's own split as one fold in the form that `read_split` reads.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_text_atomically(path, _csv(("fold", "patient_id", "subset"), [["0", *item] for item in table.split.items()]))


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def some(items: Sequence[str]) -> str:
    """Return the first few items and how many more there are.

    Examples:
        >>> some(["a", "b"]), some(list("abcdefg"))
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
