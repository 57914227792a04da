"""The label table: which slide belongs to which patient and class."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError, nearest_name

MAX_CLASSES = 20
_SHOWN = 5
_EMPTY = frozenset({"", "na", "n/a", "nan", "null", "#n/a", "<na>"})
_NEGATIVE = frozenset(
    {"0", "negative", "neg", "-", "no", "none", "false", "absent", "normal", "benign", "healthy", "control", "wildtype"}
    | {"wild-type", "wild type", "wt", "unmutated", "n0", "low", "non-tumor", "non-tumour"}
)
_POSITIVE = frozenset(
    {"1", "positive", "pos", "+", "yes", "true", "present", "abnormal", "malignant", "tumor", "tumour", "cancer"}
    | {"mutated", "mutant", "mut", "n+", "high"}
)
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class CohortRow:
    """One labelled slide.

    Attributes:
        slide_id: name of the slide without folder and ending; always text.
        patient_id: whom the slide is of; the slide itself where the table has no such column.
        target: the cell as it stands in the table.
        label: index into the cohort's `class_names`.
    """

    slide_id: str
    patient_id: str
    target: str
    label: int


@dataclass(frozen=True)
class Cohort:
    """The slides that take part, one row each, in the order of the table.

    Attributes:
        rows: the labelled slides.
        class_names: label 0 first; of two classes the last is the positive one.
        target: name of the column that holds the target.
        unlabelled: slide ids whose target cell is empty; they take no part.

    Raises:
        CohortError: a slide stands twice, or not every class has a slide.
    """

    rows: tuple[CohortRow, ...]
    class_names: tuple[str, ...]
    target: str
    unlabelled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        doubled = [slide for slide, n in Counter(row.slide_id for row in self.rows).items() if n > 1]
        if doubled:
            raise CohortError(f"Making a cohort: slide_id must be unique, but {_some(doubled)} stand more than once.")
        missing = [name for label, name in enumerate(self.class_names) if not (self.labels == label).any()]
        if len(self.class_names) < 2 or missing:
            found = {name: int((self.labels == label).sum()) for label, name in enumerate(self.class_names)}
            what = f"no slide of class {_some(missing)}" if missing else "only one class"
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


def read_columns(csv_path: Path) -> dict[str, list[str]]:
    """Read a label table as text, column by column, in table order.

    Raises:
        CohortError: as `read_cohort` for whatever is wrong with the table itself.
    """
    header, lines = _read_table(csv_path)
    return {name: [cells[index] for _, cells in lines] for index, name in enumerate(header)}


def is_empty(cell: str) -> bool:
    """Return whether a cell of the target means "not known".

    Examples:
        >>> is_empty("NA"), is_empty("N0")
        (True, False)
    """
    return cell.lower() in _EMPTY


def read_cohort(
    csv_path: Path, target: str, *, classes: Sequence[str] | None = None, class_of: Mapping[str, str] | None = None
) -> Cohort:
    """Read a label table.

    Columns: ``slide_id``, optionally ``patient_id``, and any number of targets. Ids are text
    (``007`` stays ``007``). Rows whose target is empty (or NA, NaN, null) are left out and listed in
    `Cohort.unlabelled`. Commas, semicolons or tabs separate; the encoding is UTF-8.

    Whole numbers are classes in numeric order. Text is sorted, except that a word for "negative"
    (negative, neg, normal, benign, no, false, wild type ...) comes first, so that of two classes the
    positive one is last.

    Args:
        csv_path: the table.
        target: name of the column to predict.
        classes: the class names in order, when the order or the set of classes is to be fixed; a
            table that holds 0, 1 ... or other words for negative and positive is understood too.
        class_of: the class for some values of the table, where several values make one class.

    Raises:
        CohortError: no file, not UTF-8, no such column, a slide twice, an empty id, one class only,
            a target that looks continuous, or a value outside `classes`.
    """
    header, lines = _read_table(csv_path)
    slide_column = _column(csv_path, header, "slide_id", "every row names its slide there")
    target_column = _column(csv_path, header, target, "it is the target to predict")
    patient_column = header.index("patient_id") if "patient_id" in header else slide_column
    _check_ids(csv_path, lines, slide_column, "slide_id", unique=True)
    _check_ids(csv_path, lines, patient_column, "patient_id", unique=False)
    labelled = [(n, cells) for n, cells in lines if cells[target_column].lower() not in _EMPTY]
    known = class_of or {}
    values = [(n, known.get(cells[target_column], cells[target_column])) for n, cells in labelled]
    where = f"{csv_path}, target {target!r}"
    class_names = tuple(classes) if classes else _class_names(where, values)
    labels = _labels(where, values, class_names)
    rows = tuple(
        CohortRow(cells[slide_column], cells[patient_column], cells[target_column], label)
        for (_, cells), label in zip(labelled, labels, strict=True)
    )
    unlabelled = tuple(cells[slide_column] for _, cells in lines if cells[target_column].lower() in _EMPTY)
    try:
        return Cohort(rows, class_names, target, unlabelled)
    except CohortError as error:
        raise CohortError(f"Reading {csv_path}: {error}") from error


def read_label_table(csv_path: Path, *, unique: bool = True) -> list[dict[str, str]]:
    """Read every row of a label table as text by column, with no target chosen.

    Args:
        csv_path: the table.
        unique: refuse a slide that stands twice.

    Raises:
        CohortError: no file, not UTF-8, no column slide_id, a slide twice or an empty id.
    """
    header, lines = _read_table(csv_path)
    slide_column = _column(csv_path, header, "slide_id", "every row names its slide there")
    _check_ids(csv_path, lines, slide_column, "slide_id", unique=unique)
    return [dict(zip(header, cells, strict=True)) for _, cells in lines]


Lines = list[tuple[int, list[str]]]


def _read_table(path: Path) -> tuple[list[str], Lines]:
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
        raise CohortError(f"Reading {path}: column {_some(doubled)} stands more than once in the header.")
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


def _column(path: Path, header: list[str], name: str, why: str) -> int:
    if name in header:
        return header.index(name)
    raise CohortError(
        f"Reading {path}: there is no column {name!r} ({why}).{nearest_name(name, header)} "
        f"Columns there are: {', '.join(header)}."
    )


def _check_ids(path: Path, lines: Lines, column: int, name: str, *, unique: bool) -> None:
    where: dict[str, list[int]] = {}
    for line, cells in lines:
        where.setdefault(cells[column], []).append(line)
    if "" in where:
        raise CohortError(f"Reading {path}: {name} is empty in line {_some(where[''])}. Every row needs one.")
    doubled = {slide: at for slide, at in where.items() if len(at) > 1}
    if unique and doubled:
        listed = [f"{slide!r} (lines {', '.join(map(str, at))})" for slide, at in doubled.items()]
        raise CohortError(
            f"Reading {path}: {name} must be unique, but {len(doubled)} stand more than once: {_some(listed)}. "
            "Keep one row a slide."
        )


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"


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
            f"Reading {where}: {len(names)} different values ({_some(names)}), more than the {MAX_CLASSES} classes "
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
            f"Reading {where}: {_some(unknown)} is none of the classes {', '.join(class_names)}. "
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
