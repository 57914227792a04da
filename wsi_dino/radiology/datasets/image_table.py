"""Any table of images: ``image, patient_id, LABEL...``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.evaluation.cohort import is_empty, read_columns
from wsi_dino.radiology.datasets.image_set import ImageIndex, ImageSet
from wsi_dino.radiology.datasets.volume_row import label_value, path_within

SUBSET_COLUMNS = ("subset", "split")
_SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_BINARY = frozenset({"0", "1", "0.0", "1.0"})
_KNOWN = ("image", "patient_id", *SUBSET_COLUMNS)

Columns = Mapping[str, Sequence[str]]


def read_image_table(csv_path: Path, root: Path, *, labels: Sequence[str] = ()) -> ImageSet:
    """Read a table with an image a row.

    Columns: ``image`` (path below `root`, or a file name that is unique there), ``patient_id``, if wanted
    ``subset`` (train, val, test). Every further column whose cells are 0, 1 or empty (unknown) is a label, unless
    `labels` names them; a column that mostly holds something else (age, free text) is none, and `remarks` say so.

    Args:
        csv_path: the table.
        root: folder of the images.
        labels: ``COLUMN``, ``FIRST..LAST`` (columns as they stand side by side), or ``COLUMN=VALUE`` (1 where the
            column holds that value, 0 where it holds another).

    Raises:
        CohortError: a column is missing, an image stands twice, a path leaves `root`, or a label is neither 0 nor 1.
    """
    columns = read_columns(csv_path)
    for name in ("image", "patient_id"):
        if name not in columns:
            near = nearest_name(name, columns)
            raise CohortError(f"Reading {csv_path}: there is no column {name!r}.{near} It has {', '.join(columns)}.")
    chosen, remarks = _labels(csv_path, columns, labels)
    index = ImageIndex(root)
    _require_ids(csv_path, columns)
    files = [_file(index, cell, f"Reading {csv_path}, row {i}") for i, cell in enumerate(columns["image"], 1)]
    subsets = _subsets(csv_path, columns)
    return ImageSet(
        name=csv_path.stem,
        root=root,
        image_ids=tuple(columns["image"]),
        files=tuple(files),
        patient_ids=tuple(columns["patient_id"]),
        label_names=tuple(label.name for label in chosen),
        targets=np.stack([label.values(csv_path, columns) for label in chosen], axis=1),
        subsets=subsets,
        scheme=f"subsets of {csv_path.name}" if subsets else "",
        unlisted=index.unlisted(files),
        remarks=remarks,
    )


@dataclass(frozen=True)
class _Label:
    """A label: a column of 0 and 1, or one value of a column."""

    column: str
    value: str | None = None

    @property
    def name(self) -> str:
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


def _labels(csv_path: Path, columns: Columns, asked: Sequence[str]) -> tuple[list[_Label], tuple[str, ...]]:
    if asked:
        found = [label for text in asked for label in _asked(csv_path, columns, text)]
        return list(dict.fromkeys(found)), ()
    further = [name for name in columns if name not in _KNOWN]
    chosen = [name for name in further if _is_mostly_binary(columns[name])]
    if not chosen:
        raise CohortError(
            f"Reading {csv_path}: no column of 0 and 1 beside {', '.join(name for name in columns if name in _KNOWN)}. "
            "Add one a label, or name some with --labels (COLUMN=VALUE makes one of text)."
        )
    others = [name for name in further if name not in chosen]
    remark = f"columns that hold something else than 0 and 1 are no labels: {', '.join(others)}"
    return [_Label(name) for name in chosen], (remark,) if others else ()


def _is_mostly_binary(cells: Sequence[str]) -> bool:
    known = [cell for cell in cells if not is_empty(cell)]
    return bool(known) and sum(cell in _BINARY for cell in known) > len(known) / 2


def _asked(csv_path: Path, columns: Columns, text: str) -> list[_Label]:
    if text in columns:
        return [_Label(text)]
    first, dots, last = text.partition("..")
    if dots:
        names = list(columns)
        ends = [names.index(_known(csv_path, columns, name)) for name in (first, last)]
        return [_Label(name) for name in names[ends[0] : ends[1] + 1]]
    column, equals, value = text.partition("=")
    if equals:
        return [_Label(_known(csv_path, columns, column), value)]
    _known(csv_path, columns, text)
    return []


def _known(csv_path: Path, columns: Columns, name: str) -> str:
    if name in columns:
        return name
    near = nearest_name(name, columns)
    raise CohortError(
        f"Reading {csv_path}: there is no column {name!r} for --labels.{near} It has {', '.join(columns)}."
    )


def _require_ids(csv_path: Path, columns: Columns) -> None:
    seen: dict[str, int] = {}
    for row, (image, patient) in enumerate(zip(columns["image"], columns["patient_id"], strict=True), 2):
        if not image or not patient:
            empty = "image" if not image else "patient_id"
            raise CohortError(f"Reading {csv_path}: {empty} is empty in row {row}. Every row needs one.")
        if image in seen:
            raise CohortError(
                f"Reading {csv_path}: image {image!r} stands in rows {seen[image]} and {row}. Keep one row an image."
            )
        seen[image] = row


def _file(index: ImageIndex, cell: str, where: str) -> str | None:
    path = path_within(index.root, cell, where)
    return index.find(os.path.relpath(path, index.root).replace(os.sep, "/"))


def _subsets(csv_path: Path, columns: Columns) -> tuple[str, ...] | None:
    column = next((name for name in SUBSET_COLUMNS if name in columns), None)
    if column is None:
        return None
    for row, cell in enumerate(columns[column], 2):
        if cell.lower() not in _SUBSETS:
            raise CohortError(
                f"Reading {csv_path}: row {row}: {column} must be train, val or test, got {cell!r}. "
                "Empty the column's name to have folds made."
            )
    return tuple(_SUBSETS[cell.lower()] for cell in columns[column])
