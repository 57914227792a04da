"""The label table: which slide belongs to which patient and class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.label_table import LabelTable, TableRow, is_empty, read_label_table, some

Kind = Literal["classes", "labels", "regression", "survival"]
MAX_CLASSES = 20
_NEGATIVE = frozenset(
    {"0", "negative", "neg", "-", "no", "none", "false", "absent", "normal", "benign", "healthy", "control", "wildtype"}
    | {"wild-type", "wild type", "wt", "unmutated", "n0", "low", "non-tumor", "non-tumour"}
)
_POSITIVE = frozenset(
    {"1", "positive", "pos", "+", "yes", "true", "present", "abnormal", "malignant", "tumor", "tumour", "cancer"}
    | {"mutated", "mutant", "mut", "n+", "high"}
)


@dataclass(frozen=True)
class CohortRow:
    """One labelled slide.

    Attributes:
        slide_id: name of the slide without folder and ending; always text.
        patient_id: whom the slide is of; the slide itself where the table has no such column.
        target: the cell as it stands in the table; of several columns, all of them.
        label: index into the cohort's `class_names`.
        values: numbers to predict where the target is not a class, one for each of the cohort's `columns`; NaN = not
            known.
    """

    slide_id: str
    patient_id: str
    target: str
    label: int
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """The slides that take part, one row each, in the order of the table.

    Attributes:
        rows: the labelled slides.
        class_names: label 0 first; of two classes the last is the positive one. Where the target is not a class,
            the groups that folds are balanced by: of survival ``censored`` and ``event``.
        target: name of the column that holds the target; of several, all of them.
        unlabelled: slide ids whose target cell is empty; they take no part.
        kind: what the target is.
        columns: names of the rows' `values`.
        value_names: of each of several labels the words for 0 and 1.

    Raises:
        CohortError: a slide stands twice, or not every class has a slide.
    """

    rows: tuple[CohortRow, ...]
    class_names: tuple[str, ...]
    target: str
    unlabelled: tuple[str, ...] = ()
    kind: Kind = "classes"
    columns: tuple[str, ...] = ()
    value_names: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        doubled = [slide for slide, n in Counter(row.slide_id for row in self.rows).items() if n > 1]
        if doubled:
            raise CohortError(f"Making a cohort: slide_id must be unique, but {some(doubled)} stand more than once.")
        if not self.rows and self.kind != "classes":
            raise CohortError(f"Making a cohort for target {self.target!r}: no slide has a value for it.")
        missing = [self.class_names[label] for label in self.needed if not (self.labels == label).any()]
        if self.kind == "survival" and missing:
            raise CohortError(
                f"Making a cohort for target {self.target!r}: none of {len(self.rows)} slides is of a patient with the "
                "event, so there is nothing to learn. Check the column of the event: 1, true or yes means it happened."
            )
        if (self.kind == "classes" and len(self.class_names) < 2) or missing:
            found = {name: int((self.labels == label).sum()) for label, name in enumerate(self.class_names)}
            what = f"no slide of class {some(missing)}" if missing else "only one class"
            raise CohortError(
                f"Making a cohort for target {self.target!r}: {what} among {len(self.rows)} labelled slides "
                f"({found}). Add slides of the missing class or choose another target."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[CohortRow]:
        return iter(self.rows)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """All slide ids, in table order."""
        return tuple(row.slide_id for row in self.rows)

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """The patient of each slide, in table order."""
        return tuple(row.patient_id for row in self.rows)

    @property
    def labels(self) -> np.ndarray:
        """int64 ``(n_slides,)``."""
        return np.array([row.label for row in self.rows], np.int64)

    @property
    def needed(self) -> tuple[int, ...]:
        """Labels without which nothing can be learnt, nor tested: all classes; the event of survival; else none."""
        return {"classes": tuple(range(len(self.class_names))), "survival": (1,)}.get(self.kind, ())

    @property
    def values(self) -> np.ndarray:
        """float64 ``(n_slides, n_columns)``; NaN = not known."""
        return np.array([row.values for row in self.rows], np.float64).reshape(len(self.rows), len(self.columns))

    @cached_property
    def patients(self) -> dict[str, tuple[CohortRow, ...]]:
        """The slides of each patient; patients sorted by id."""
        slides: dict[str, list[CohortRow]] = {}
        for row in self.rows:
            slides.setdefault(row.patient_id, []).append(row)
        return {patient: tuple(slides[patient]) for patient in sorted(slides)}

    @property
    def conflicting_patients(self) -> tuple[str, ...]:
        """Patients whose slides have different labels: right for a slide-level target, an error for any other."""
        return tuple(p for p, rows in self.patients.items() if len({row.label for row in rows}) > 1)

    def counts(self) -> dict[str, int]:
        """Return the number of slides of each class."""
        return {name: int((self.labels == label).sum()) for label, name in enumerate(self.class_names)}

    def only(self, slide_ids: Collection[str]) -> Cohort:
        """Return the cohort of those rows whose slide is in `slide_ids`.

        Raises:
            CohortError: a class loses its last slide.
        """
        return replace(self, rows=tuple(row for row in self.rows if row.slide_id in slide_ids))

    def slides_of(self, patient_ids: Collection[str]) -> tuple[str, ...]:
        """Return the slides of these patients, in table order."""
        wanted = set(patient_ids)
        return tuple(row.slide_id for row in self.rows if row.patient_id in wanted)


def read_cohort(
    table: Path | LabelTable,
    target: str,
    *,
    classes: Sequence[str] | None = None,
    class_of: Mapping[str, str] | None = None,
) -> Cohort:
    """Read the classes of one column of a label table.

    Rows whose target is empty (or NA, NaN, null) are left out and listed in `Cohort.unlabelled`. Whole numbers
    are classes in numeric order. Text is sorted, except that a word for "negative" (negative, neg, normal, benign,
    no, false, wild type ...) comes first, so that of two classes the positive one is last.

    Args:
        table: the table, or where it lies.
        target: name of the column to predict.
        classes: the class names in order, when the order or the set of classes is to be fixed; a
            table that holds 0, 1 ... or other words for negative and positive is understood too.
        class_of: the class for some values of the table, where several values make one class.

    Raises:
        CohortError: as `read_label_table`; no such column, one class only, a target that looks continuous,
            or a value outside `classes`.
    """
    table = table if isinstance(table, LabelTable) else read_label_table(table)
    class_names, labels = read_classes(table, target, classes=classes, class_of=class_of)
    rows = tuple(
        CohortRow(row.slide_id, row.patient_id, row.cells[target], labels[row.slide_id])
        for row in table.rows
        if row.slide_id in labels
    )
    unlabelled = tuple(row.slide_id for row in table.rows if row.slide_id not in labels)
    try:
        return Cohort(rows, class_names, target, unlabelled)
    except CohortError as error:
        raise CohortError(f"Reading {table.path}: {error}") from error


def read_classes(
    table: LabelTable, target: str, *, classes: Sequence[str] | None = None, class_of: Mapping[str, str] | None = None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names of a column, and the label of each slide whose cell is not empty; see `read_cohort`.

    Raises:
        CohortError: as `read_cohort`, but for one class only.
    """
    table.require(target, "it is the target to predict")
    labelled = [row for row in table.rows if not is_empty(row.cells[target])]
    values = [(row.line, _class_value(row, target, class_of or {})) for row in labelled]
    where = f"{table.path}, target {target!r}"
    class_names = tuple(classes) if classes else _class_names(where, values)
    labels = _labels(where, values, class_names)
    return class_names, {row.slide_id: label for row, label in zip(labelled, labels, strict=True)}


def _class_value(row: TableRow, target: str, known: Mapping[str, str]) -> str:
    return known.get(row.cells[target], row.cells[target])


def _whole_number(value: str) -> str | None:
    """Return ``"1"`` for ``"1"``, ``"01"`` or ``"1.0"``; None for any other text."""
    try:
        number = float(value)
    except ValueError:
        return None
    return str(int(number)) if math.isfinite(number) and number == int(number) else None


def _class_names(where: str, values: list[tuple[int, str]]) -> tuple[str, ...]:
    whole = {value: _whole_number(value) for _, value in values}
    if None not in whole.values():
        names = sorted({str(name) for name in whole.values()}, key=int)
    else:
        _check_not_continuous(where, values)
        names = sorted(whole, key=lambda name: (name.lower() not in _NEGATIVE, name))
        _check_spelling(where, names)
    if len(names) > MAX_CLASSES:
        raise CohortError(
            f"Reading {where}: {len(names)} different values ({some(names)}), more than the {MAX_CLASSES} classes "
            "that make sense; it looks continuous, or like an identifier. Make classes of it first."
        )
    return tuple(names)


def _check_not_continuous(where: str, values: list[tuple[int, str]]) -> None:
    for line, value in values:
        try:
            float(value)
        except ValueError:
            continue
        if _whole_number(value) is None:
            raise CohortError(
                f"Reading {where}: {value} in line {line} is no class; the target looks continuous. "
                "Make classes of it first (for instance 0 below and 1 above a cut)."
            )


def _check_spelling(where: str, names: list[str]) -> None:
    spelled: dict[str, str] = {}
    for name in names:
        if name.lower() in spelled:
            raise CohortError(f"Reading {where}: {spelled[name.lower()]!r} and {name!r} differ in spelling only.")
        spelled[name.lower()] = name


def _labels(where: str, values: list[tuple[int, str]], class_names: tuple[str, ...]) -> list[int]:
    by_value = {value: _label(value, class_names) for _, value in values}
    unknown = [f"{value!r} (line {line})" for line, value in values if by_value[value] is None]
    if unknown:
        raise CohortError(
            f"Reading {where}: {some(unknown)} is none of the classes {', '.join(class_names)}. "
            "Correct the table, or empty those cells to leave the slides out."
        )
    return [label for _, value in values if (label := by_value[value]) is not None]


def _label(value: str, class_names: tuple[str, ...]) -> int | None:
    lowered = [name.lower() for name in class_names]
    for text in (value.lower(), _whole_number(value)):
        if text in lowered:
            return lowered.index(text)
    whole = _whole_number(value)
    numbered = any(_whole_number(name) is not None for name in class_names)
    if whole is not None and not numbered:
        return int(whole) if 0 <= int(whole) < len(class_names) else None
    if len(class_names) == 2 and lowered[0] in _NEGATIVE and lowered[1] in _POSITIVE:
        return 0 if value.lower() in _NEGATIVE else 1 if value.lower() in _POSITIVE else None
    return None
