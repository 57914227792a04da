"""CT-RATE from its official files: non-contrast chest CT with 18 labels read from reports.

Source: the data set's page (``ibrahimhamamci/CT-RATE``, gated, CC-BY-NC-SA-4.0) and CT-CLIP's
``scripts/data_inference_nii.py``. Labels were predicted from reports, also those of the validation part, which
is the test set here. Names: ``train_1_a_2`` is patient 1 of train, scan a, reconstruction 2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from wsi_dino.errors import CohortError, VolumeError
from wsi_dino.evaluation.label_table import read_columns
from wsi_dino.radiology.datasets.reader import AUTO, DataRequest, DatasetReader
from wsi_dino.radiology.datasets.volume_row import (
    VolumeRow,
    VolumeTable,
    label_value,
    volume_name,
    without_unlabelled_rows,
)
from wsi_dino.volumes.volume import Rescale

LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis",
    "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
Release = Literal["auto", "fixed", "original"]
# The published parts: the name of files and labels, of the metadata (which differs), of volumes, and its use here.
_PARTS = (("train", "train", "train"), ("valid", "validation", "test"))
_NAME = re.compile(r"(?P<patient>(?:train|valid)_\d+)_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)")
_SHOWN = 3


def read_ct_rate(root: Path, *, release: Release = "auto") -> VolumeTable:
    """Read labels, metadata and the lists of volumes that show no chest.

    Args:
        root: the download, or its folder ``dataset``.
        release: of the files: ``original`` (train, valid), ``fixed`` (train_fixed, valid_fixed: HU and headers
            corrected by the authors), or ``auto``: the fixed one of a volume where it is there.

    Raises:
        CohortError: a table is missing, lacks a label's column, names a volume twice, or a label is neither 0 nor 1.
    """
    folder = root / "dataset" if (root / "dataset").is_dir() else root
    rows: list[VolumeRow] = []
    left_out: dict[str, str] = {}
    remarks: list[str] = []
    for part, metadata_part, subset in _PARTS:
        found = list(_part_rows(folder, part, metadata_part, subset, release, remarks))
        excluded = _no_chest(folder, part)
        left_out |= {row.volume_id: "no chest" for row in found if row.volume_id in excluded}
        rows += [row for row in found if row.volume_id not in excluded]
    known, unlabelled = without_unlabelled_rows(rows)
    named = {row.volume_id for row in rows} | set(left_out)
    return VolumeTable(
        "ct-rate", LABELS, known, left_out | unlabelled, unlabelled=_without_row(folder, named), remarks=tuple(remarks)
    )


def _part_rows(
    folder: Path, part: str, metadata_part: str, subset: str, release: Release, remarks: list[str]
) -> Iterator[VolumeRow]:
    labels_csv = folder / "multi_abnormality_labels" / f"{part}_predicted_labels.csv"
    columns = read_columns(labels_csv)
    _require_labels(labels_csv, columns)
    metadata = _metadata(folder / "metadata" / f"{metadata_part}_metadata.csv", remarks)
    names = [volume_name(name) for name in columns["VolumeName"]]
    n_without = sum(name not in metadata for name in names) if metadata else 0
    if n_without:
        remarks.append(f"{part}: {n_without} volumes have no row in {metadata_part}_metadata.csv")
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        where = f"Reading {labels_csv}, row {index + 2} ({name})"
        if seen.setdefault(name, index) != index:
            raise CohortError(f"{where}: the volume stands in row {seen[name] + 2} too. Keep one row a volume.")
        targets = tuple(label_value(columns[label][index], f"{where}, column {label!r}") for label in LABELS)
        yield _row(folder, part, name, where, targets, subset, metadata.get(name, {}), release)


def _row(
    folder: Path, part: str, name: str, where: str, targets: tuple[float, ...], subset: str,
    metadata: Mapping[str, str], release: Release,
) -> VolumeRow:  # fmt: skip
    match = _NAME.fullmatch(name)
    if match is None or not name.startswith(f"{part}_"):
        raise CohortError(f"{where}: expected a name like {part}_1_a_1.nii.gz, got {name!r}.")
    scan = f"{match['patient']}_{match['scan']}"
    rescale, spacing, trouble = _from_metadata(metadata)
    path = _path(folder, part, match["patient"], scan, name, release)
    return VolumeRow(name, path, match["patient"], scan, targets, subset, rescale, spacing, trouble=trouble)


def _path(folder: Path, part: str, patient: str, scan: str, name: str, release: Release) -> Path:
    inside = Path(patient) / scan / f"{name}.nii.gz"
    fixed, original = folder / f"{part}_fixed" / inside, folder / part / inside
    if release == "auto":
        return fixed if fixed.exists() else original
    return fixed if release == "fixed" else original


def _require_labels(labels_csv: Path, columns: Mapping[str, Sequence[str]]) -> None:
    missing = [name for name in ("VolumeName", *LABELS) if name not in columns]
    if missing:
        raise CohortError(
            f"Reading {labels_csv}: it lacks the column {', '.join(missing[:_SHOWN])}. "
            f"It has: {', '.join(columns)}. Fetch the file again from the data set's page."
        )


def _metadata(csv_path: Path, remarks: list[str]) -> dict[str, dict[str, str]]:
    """Return the metadata of each volume; none where the table is not there, which is remarked."""
    if not csv_path.is_file():
        remarks.append(f"{csv_path.name} is not there: spacing and rescale are taken from each file")
        return {}
    columns = read_columns(csv_path)
    wanted = [name for name in ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing") if name in columns]
    if "VolumeName" not in columns:
        raise CohortError(f"Reading {csv_path}: there is no column VolumeName. It has: {', '.join(columns)}.")
    return {
        volume_name(name): {column: columns[column][index] for column in wanted}
        for index, name in enumerate(columns["VolumeName"])
    }


def _from_metadata(metadata: Mapping[str, str]) -> tuple[Rescale | None, tuple[float, float, float] | None, str]:
    """Return rescale, spacing (z, y, x) and, where a number is none, what is wrong."""
    try:
        return _rescale(metadata), _spacing(metadata), ""
    except (ValueError, VolumeError) as error:
        return None, None, f"its row in the metadata table makes no sense ({error})"


def _rescale(metadata: Mapping[str, str]) -> Rescale | None:
    slope, intercept = metadata.get("RescaleSlope", ""), metadata.get("RescaleIntercept", "")
    return Rescale(float(slope), float(intercept), "metadata table") if slope and intercept else None


def _spacing(metadata: Mapping[str, str]) -> tuple[float, float, float] | None:
    """Parse ``"[0.7, 0.7]"`` and ``"1.5"``.

    Examples:
        >>> _spacing({"XYSpacing": "[0.7, 0.8]", "ZSpacing": "1.5"})
        (1.5, 0.8, 0.7)
    """
    in_plane, across = metadata.get("XYSpacing", ""), metadata.get("ZSpacing", "")
    if not in_plane or not across:
        return None
    numbers = json.loads(in_plane)
    if not isinstance(numbers, list) or len(numbers) != 2:
        raise ValueError(f"XYSpacing is {in_plane!r}, expected two numbers as in [0.7, 0.7]")
    return float(across), float(numbers[1]), float(numbers[0])


def _no_chest(folder: Path, part: str) -> set[str]:
    """Return the volumes that the authors list as not of the chest; the lists give paths, of which the name counts."""
    places = [place / f"no_chest_{part}.txt" for place in (folder / "metadata", folder, folder.parent)]
    lists = [path.read_text(encoding="utf-8") for path in places if path.is_file()]
    return {volume_name(Path(line.strip()).name) for text in lists for line in text.splitlines() if line.strip()}


def _without_row(folder: Path, named: set[str]) -> tuple[str, ...]:
    """Return volumes on disk that no label table names."""
    found: list[str] = []
    for part, _, _ in _PARTS:
        for top in (folder / part, folder / f"{part}_fixed"):
            found += [volume_name(path.name) for path in top.glob("*/*/*.nii.gz") if not path.name.startswith(".")]
    return tuple(sorted(set(found) - named))


def _read(root: Path, request: DataRequest) -> VolumeTable:
    release = next(name for name in get_args(Release) if name == request.release)
    return read_ct_rate(root, release=release)


READER = DatasetReader(
    "ct-rate", "volumes", "CT-RATE: 50,188 volumes of the chest, 18 labels read from reports", _read,
    splits=("official",), releases=tuple(name for name in get_args(Release) if name != AUTO),
)  # fmt: skip
