"""A label table as a task reads it: which of its slides take part, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.evaluation.cohort import Cohort, read_cohort
from wsi_dino.evaluation.label_table import LabelTable, read_label_table
from wsi_dino.evaluation.target_columns import read_several_labels, read_survival, read_values
from wsi_dino.mil.tasks import Task, find_columns


@dataclass(frozen=True)
class Labels:
    """One label table as a task reads it.

    Attributes:
        task: with `target` as the table spells it, and no `threshold` where the table holds classes already.
        cohort: the slides that the task's scheme takes.
        rows: of each of them, its whole row of the table.
        has_patient_id: whether the table has that column.
        names: slides of all rows.
    """

    task: Task
    cohort: Cohort
    rows: Mapping[str, Mapping[str, str]]
    has_patient_id: bool
    names: frozenset[str]


def read_labels(task: Task, labels: Path, *, test: bool = False) -> Labels:
    """Read a label table; with `test` that of an external test cohort.

    Raises:
        CohortError: something is wrong with the table, or the scheme takes none of its slides.
    """
    table = read_label_table(labels)
    told = task.with_columns(find_columns(task, table.header))
    rows = {row.slide_id: row.cells for row in table.rows}
    kept = _kept(task, rows, labels, test=test)
    cohort = _read_target(told, table)
    unlabelled = tuple(slide_id for slide_id in cohort.unlabelled if slide_id in kept)
    cohort = replace(cohort.only(kept), unlabelled=unlabelled)
    return Labels(
        _resolved(told, table, cohort), cohort, {slide_id: rows[slide_id] for slide_id in cohort.slide_ids},
        table.has_patient_id, frozenset(rows),
    )  # fmt: skip


def _read_target(task: Task, table: LabelTable) -> Cohort:
    if task.kind == "survival":
        return read_survival(table, task.time, task.event)
    if task.kind == "regression":
        return read_values(table, task.target)
    if task.kind == "labels":
        return read_several_labels(table, task.targets, task.classes)
    return read_cohort(table, task.target, classes=task.classes, class_of=task.class_of(table.values(task.target)))


def _resolved(task: Task, table: LabelTable, cohort: Cohort) -> Task:
    """Return the task with what only the table tells: whether its threshold cuts, and the horizon of survival."""
    if task.kind == "classes":
        threshold = task.threshold if task.cuts(table.values(task.target)) else None
        return task.model_copy(update={"threshold": threshold})
    if task.kind != "survival":
        return task
    outcomes = np.array([rows[0].values for rows in cohort.patients.values()])
    horizon = task.horizon or float(np.median(outcomes[outcomes[:, 1] == 1, 0]))
    if horizon > outcomes[:, 0].max():
        raise CohortError(
            f"Reading {table.path}: the horizon of task {task.name} is {horizon:g}, but nobody was watched longer than "
            f"{outcomes[:, 0].max():g} (column {task.time!r}). Choose an earlier one."
        )
    return task.model_copy(update={"horizon": horizon})


def _kept(task: Task, table: Mapping[str, Mapping[str, str]], labels: Path, *, test: bool) -> set[str]:
    """Return the slides that the task's scheme takes from a table."""
    wanted = task.scheme.test_keep if test else task.scheme.keep
    header = list(next(iter(table.values())))
    needed = [*wanted, *([task.scheme.column] if task.scheme.column else [])]
    for column in needed:
        if column not in header:
            raise CohortError(
                f"Choosing the slides of task {task.name}: {labels} has no column {column!r}."
                f"{nearest_name(column, header)} Columns there are: {', '.join(header)}. "
                "`wsi-dino cohort` writes tables that have what the shipped tasks need."
            )
    kept = {slide_id for slide_id, row in table.items() if task.scheme.takes(row, test=test)}
    if not kept:
        asked = "; ".join(f"{column} is {' or '.join(values)}" for column, values in wanted.items())
        raise CohortError(f"Choosing the slides of task {task.name}: in no row of {labels} {asked}.")
    return kept
