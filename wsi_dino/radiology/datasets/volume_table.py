"""Any table of volumes: ``volume, patient_id, LABEL...``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.evaluation.label_table import read_columns
from wsi_dino.radiology.datasets.label_columns import Columns, choose_labels, without_duplicates
from wsi_dino.radiology.datasets.volume_row import (
    VolumeRow,
    VolumeTable,
    path_within,
    volume_name,
    without_unlabelled_rows,
)
from wsi_dino.run_folder import safe_name
from wsi_dino.volumes.volume import Rescale

PATH_COLUMNS = ("volume", "image", "path")
SUBSET_COLUMNS = ("subset", "split")
_SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_KNOWN = (
    *PATH_COLUMNS, *SUBSET_COLUMNS, "volume_id", "patient_id", "scan_id", "rescale_slope", "rescale_intercept",
    "spacing_x_mm", "spacing_y_mm", "spacing_z_mm",
)  # fmt: skip


def read_volume_table(
    csv_path: Path,
    root: Path,
    *,
    labels: Sequence[str] = (),
    baselines: Sequence[str] = (),
    drop_duplicates: bool = False,
) -> VolumeTable:
    """Read a table with a volume a row.

    Columns: ``volume`` (also ``image`` or ``path``: file or DICOM folder below `root`), ``patient_id``; if wanted
    ``volume_id``, ``scan_id``, ``subset`` (train, val, test), ``rescale_slope`` with ``rescale_intercept``,
    ``spacing_x_mm`` with ``_y_`` and ``_z_``. Every further column of 0, 1 and empty cells is a label, unless
    `labels` names some (see `choose_labels`). With `drop_duplicates` rows that say what an earlier row says
    are left out.

    Raises:
        CohortError: a column is missing, a volume stands twice, a path leaves `root`, a label is neither 0 nor 1,
            a patient is in two subsets, or a number is none.
    """
    columns: Columns = read_columns(csv_path)
    path_column = _path_column(csv_path, columns)
    key = "volume_id" if "volume_id" in columns and all(columns["volume_id"]) else path_column
    columns, dropped = without_duplicates(csv_path, columns, key, drop=drop_duplicates)
    _require_baselines(csv_path, columns, baselines)
    chosen, remarks = choose_labels(csv_path, columns, labels, (*_KNOWN, *baselines))
    targets = np.stack([label.values(csv_path, columns) for label in chosen], axis=1).astype(np.float64)
    rows = [
        _row(csv_path, root, columns, path_column, tuple(map(float, targets[i])), baselines, i)
        for i in range(len(targets))
    ]
    _require_unique(csv_path, rows)
    require_one_subset(csv_path, rows)
    known, left_out = without_unlabelled_rows(rows)
    names = tuple(label.name for label in chosen)
    unlabelled = _not_in_table(root, rows)
    return VolumeTable(csv_path.stem, names, known, left_out, unlabelled=unlabelled, remarks=dropped + remarks)


def _path_column(csv_path: Path, columns: Columns) -> str:
    found = next((name for name in PATH_COLUMNS if name in columns), None)
    for name, present in (("volume", found), ("patient_id", "patient_id" in columns)):
        if not present:
            raise CohortError(
                f"Reading {csv_path}: there is no column {name!r}.{nearest_name(name, columns)} "
                f"Columns there are: {', '.join(columns)}."
            )
    return str(found)


def _require_baselines(csv_path: Path, columns: Columns, baselines: Sequence[str]) -> None:
    for name in baselines:
        if name not in columns:
            near = nearest_name(name, columns)
            raise CohortError(f"Reading {csv_path}: there is no column {name!r}.{near} Known: {', '.join(columns)}.")


def _row(
    csv_path: Path, root: Path, columns: Columns, path_column: str, targets: tuple[float, ...],
    baselines: Sequence[str], index: int,
) -> VolumeRow:  # fmt: skip
    cells = {name: values[index] for name, values in columns.items()}
    where = f"Reading {csv_path}, row {index + 2} ({cells[path_column]})"
    path = path_within(root, cells[path_column], f"{where}, column {path_column!r}")
    if not cells["patient_id"]:
        raise CohortError(f"{where}: patient_id is empty; it keeps a patient on one side of every split.")
    volume_id = cells.get("volume_id") or volume_name(path.relative_to(root).as_posix())
    return VolumeRow(
        volume_id, path, cells["patient_id"], cells.get("scan_id") or volume_id,
        targets,
        _subset(cells, where), _rescale(cells, where), _spacing(cells, where),
        {name: _number(cells[name], f"{where}, column {name!r}") for name in baselines},
    )  # fmt: skip


def _subset(cells: Mapping[str, str], where: str) -> str | None:
    column = next((name for name in SUBSET_COLUMNS if name in cells), None)
    if column is None:
        return None
    if cells[column].lower() not in _SUBSETS:
        raise CohortError(f"{where}: {column} must be train, val or test, got {cells[column]!r}.")
    return _SUBSETS[cells[column].lower()]


def _rescale(cells: Mapping[str, str], where: str) -> Rescale | None:
    slope, intercept = cells.get("rescale_slope", ""), cells.get("rescale_intercept", "")
    if not slope and not intercept:
        return None
    return Rescale(
        _number(slope, f"{where}, rescale_slope"), _number(intercept, f"{where}, rescale_intercept"), "table"
    )


def _spacing(cells: Mapping[str, str], where: str) -> tuple[float, float, float] | None:
    texts = [cells.get(f"spacing_{axis}_mm", "") for axis in "zyx"]
    if not any(texts):
        return None
    z, y, x = (_number(text, f"{where}, spacing_{axis}_mm") for axis, text in zip("zyx", texts, strict=True))
    return z, y, x


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CohortError(f"{where}: expected a number, got {text!r}.")
    return value


def _require_unique(csv_path: Path, rows: Sequence[VolumeRow]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows, 2):
        before, name = seen.setdefault(safe_name(row.volume_id), (number, row.volume_id))
        if before != number and name == row.volume_id:
            raise CohortError(f"Reading {csv_path}: {name!r} stands in rows {before} and {number}.")
        if before != number:
            raise CohortError(
                f"Reading {csv_path}: features of {name!r} (row {before}) and {row.volume_id!r} (row {number}) would "
                "be one file. Tell them apart in a column volume_id."
            )


def require_one_subset(csv_path: Path, rows: Sequence[VolumeRow]) -> None:
    """Refuse a patient, or a scan, on two sides.

    Raises:
        CohortError: naming one.
    """
    for key in ("patient_id", "scan_id"):
        side: dict[str, str | None] = {}
        for row in rows:
            owner = getattr(row, key)
            if side.setdefault(owner, row.subset) != row.subset:
                raise CohortError(
                    f"Reading {csv_path}: {key} {owner} is in both {side[owner]} and {row.subset}. "
                    "A patient belongs to one subset, or the result would leak."
                )


def _not_in_table(root: Path, rows: Sequence[VolumeRow]) -> tuple[str, ...]:
    """Return NIfTI files in the folders that the table names of which it says nothing."""
    named = {row.path for row in rows}
    folders = sorted({path.parent for path in named})
    files = (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()))
    return tuple(
        volume_name(path.relative_to(root).as_posix())
        for path in files
        if path.name.endswith((".nii.gz", ".nii")) and not path.name.startswith(".") and path not in named
    )
