"""Any table of images: ``image, patient_id, LABEL...``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.evaluation.label_table import read_columns
from wsi_dino.radiology.datasets.image_set import ImageIndex, ImageSet
from wsi_dino.radiology.datasets.label_columns import Columns, choose_labels, without_duplicates
from wsi_dino.radiology.datasets.volume_row import path_within

SUBSET_COLUMNS = ("subset", "split")
_SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_KNOWN = ("image", "patient_id", *SUBSET_COLUMNS)


def read_image_table(
    csv_path: Path, root: Path, *, labels: Sequence[str] = (), drop_duplicates: bool = False
) -> ImageSet:
    """Read a table with an image a row.

    Columns: ``image`` (path below `root`, or a file name that is unique there), ``patient_id``, if wanted
    ``subset`` (train, val, test). Every further column whose cells are 0, 1 or empty (unknown) is a label, unless
    `labels` names them; a column that mostly holds something else (age, free text) is none, and `remarks` say so.

    Args:
        csv_path: the table.
        root: folder of the images.
        labels: ``COLUMN``, ``FIRST..LAST`` (columns as they stand side by side), or ``COLUMN=VALUE`` (1 where the
            column holds that value, 0 where it holds another).
        drop_duplicates: leave out rows that say what an earlier row says.

    Raises:
        CohortError: a column is missing, an image stands twice, a path leaves `root`, or a label is neither 0 nor 1.
    """
    columns: Columns = read_columns(csv_path)
    for name in ("image", "patient_id"):
        if name not in columns:
            near = nearest_name(name, columns)
            raise CohortError(f"Reading {csv_path}: there is no column {name!r}.{near} It has {', '.join(columns)}.")
    columns, dropped = without_duplicates(csv_path, columns, "image", drop=drop_duplicates)
    chosen, remarks = choose_labels(csv_path, columns, labels, _KNOWN)
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
        remarks=dropped + remarks,
    )


def _require_ids(csv_path: Path, columns: Columns) -> None:
    for row, (image, patient) in enumerate(zip(columns["image"], columns["patient_id"], strict=True), 2):
        if not image or not patient:
            empty = "image" if not image else "patient_id"
            raise CohortError(f"Reading {csv_path}: {empty} is empty in row {row}. Every row needs one.")


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
