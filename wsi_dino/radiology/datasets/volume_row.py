"""What a reader of a CT data set returns: one row a volume, and what was left out and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wsi_dino.errors import CohortError
from wsi_dino.radiology.datasets.label_names import label_places
from wsi_dino.radiology.datasets.unlisted import require_none_unlisted
from wsi_dino.volumes.volume import Rescale

VOLUME_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class VolumeRow:
    """One labelled volume.

    Attributes:
        volume_id: unique; without folder and ending.
        path: NIfTI file, or folder of a DICOM series.
        patient_id: of whom; a patient is on one side of every split.
        scan_id: volumes that are reconstructions of one scan share it.
        targets: 0, 1 or NaN (unknown), one a label.
        subset: ``train``, ``val`` or ``test`` where the data set says, else None.
        rescale, spacing_mm: from a metadata table, or None where the file itself is asked.
        baselines: numbers of the table that are scored beside the encoder.
        trouble: why the row cannot be used as it stands, or "".
    """

    volume_id: str
    path: Path
    patient_id: str
    scan_id: str
    targets: tuple[float, ...]
    subset: str | None = None
    rescale: Rescale | None = None
    spacing_mm: tuple[float, float, float] | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True)
class VolumeTable:
    """A data set of volumes.

    Attributes:
        name: of the data set; a folder of the run is named after it.
        label_names: in order.
        rows: in the order of the table(s).
        left_out: ids with the reason, e.g. ``no chest``.
        missing: ids whose file is not there; they are rows, or in `left_out` where that was asked for.
        unlabelled: volumes on disk of which no table speaks.
        remarks: what else was seen.
    """

    name: str
    label_names: tuple[str, ...]
    rows: tuple[VolumeRow, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def targets(self) -> np.ndarray:
        """float64 ``(n_volumes, n_labels)``, NaN where unknown."""
        return np.array([row.targets for row in self.rows], np.float64).reshape(len(self.rows), len(self.label_names))

    def limited(self, limit: int) -> VolumeTable:
        """Return `limit` volumes spread evenly over the table; 0 for all."""
        if not limit or limit >= len(self.rows):
            return self
        return replace(self, rows=tuple(self.rows[i * len(self.rows) // limit] for i in range(limit)))

    def without_subsets(self) -> VolumeTable:
        """Return the table without a split of its own."""
        return replace(self, rows=tuple(replace(row, subset=None) for row in self.rows))

    def with_labels(self, names: Sequence[str]) -> VolumeTable:
        """Return the table with these labels alone.

        Raises:
            CohortError: it has no such label.
        """
        columns = label_places(self.name, self.label_names, names)
        rows = tuple(replace(row, targets=tuple(row.targets[column] for column in columns)) for row in self.rows)
        return replace(self, label_names=tuple(names), rows=rows)


def volume_name(name: str) -> str:
    """Return a file name without the endings of NIfTI.

    Examples:
        >>> volume_name("train_1_a_1.nii.gz")
        'train_1_a_1'
    """
    ending = next((ending for ending in VOLUME_ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending)


def path_within(root: Path, text: str, where: str) -> Path:
    """Return the path that a cell names below `root`.

    Raises:
        CohortError: the cell is empty, absolute, or climbs out of the folder.
    """
    inside = os.path.normpath(text)
    if not text or "\0" in text or os.path.isabs(text) or inside == ".." or inside.startswith(".." + os.sep):
        raise CohortError(f"{where}: {text!r} is no path inside of {root}. Paths are relative to --root.")
    return root / inside


def label_value(cell: str, where: str) -> float:
    """Return 0, 1, or NaN for an empty cell.

    Raises:
        CohortError: something else.

    Examples:
        >>> label_value("1.0", "here"), label_value("", "here")
        (1.0, nan)
    """
    from wsi_dino.evaluation.label_table import is_empty

    if is_empty(cell):
        return float("nan")
    if cell not in {"0", "1", "0.0", "1.0"}:
        raise CohortError(
            f"{where}: a label is 0, 1 or empty (unknown), got {cell!r}. Name other columns with --labels."
        )
    return float(cell)


def settle_missing(table: VolumeTable, *, skip: bool, refuse_unlisted: bool = False) -> VolumeTable:
    """Return the table with volumes whose file is absent named; with `skip` they take no part.

    Raises:
        CohortError: no volume is there at all, or `refuse_unlisted` and there are some that the table does not name.
    """
    if refuse_unlisted:
        require_none_unlisted(table.name, table.unlabelled)
    missing = tuple(row.volume_id for row in table.rows if not row.path.exists())
    if len(missing) == len(table.rows):
        first = table.rows[0].path if table.rows else "(the table has no row)"
        raise CohortError(f"Reading {table.name}: none of its {len(table.rows)} volumes is there, e.g. {first}.")
    gone = set(missing) if skip else set()
    left_out = {**table.left_out, **dict.fromkeys(sorted(gone), "file missing")}
    rows = tuple(row for row in table.rows if row.volume_id not in gone)
    return replace(table, rows=rows, left_out=left_out, missing=missing)


def without_unlabelled_rows(rows: Sequence[VolumeRow]) -> tuple[tuple[VolumeRow, ...], dict[str, str]]:
    """Part rows that know at least one label from those that know none."""
    known = tuple(row for row in rows if not np.isnan(row.targets).all())
    return known, {row.volume_id: "no label" for row in rows if np.isnan(row.targets).all()}
