"""From a path to a volume in Hounsfield units, whatever the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_dino.errors import VolumeError
from wsi_dino.volumes.dicom_series import read_dicom_series
from wsi_dino.volumes.hounsfield import HuPolicy, decide_hu
from wsi_dino.volumes.nifti import ENDINGS, read_nifti
from wsi_dino.volumes.orientation import as_shown, axis_codes, obliquity_deg
from wsi_dino.volumes.volume import Rescale, StoredVolume, Volume, check_spacing

Spacing = tuple[float, float, float]
_SPACING_TOLERANCE = 0.01


def open_volume(
    path: Path, *, rescale: Rescale | None = None, spacing_mm: Spacing | None = None, hu: HuPolicy = "auto"
) -> Volume:
    """Read a NIfTI file or the folder of a DICOM series, oriented, with Hounsfield units resolved.

    Args:
        path: ``.nii``, ``.nii.gz``, or a folder.
        rescale: slope and intercept from a metadata table; they go before the file's own.
        spacing_mm: (z, y, x) from a metadata table, which goes before the file's own: the first release of
            CT-RATE has it in the table only.
        hu: see `decide_hu`.

    Raises:
        VolumeError: the path is neither, the file is damaged, or geometry or values make no sense.
    """
    stored = _read(path)
    try:
        return _oriented(stored, rescale or stored.rescale, spacing_mm, hu)
    except VolumeError as error:
        raise VolumeError(f"Reading {path}: {error}") from error


def _read(path: Path) -> StoredVolume:
    if path.is_dir():
        return read_dicom_series(path)
    if path.name.endswith(ENDINGS):
        return read_nifti(path)
    if path.suffix == ".dcm":
        raise VolumeError(f"Reading {path}: one DICOM file is one slice. Name the folder of the series instead.")
    known = ", ".join(ENDINGS)
    found = "a file of another kind" if path.is_file() else "no such file or folder"
    raise VolumeError(f"Reading {path}: expected {known} or the folder of a DICOM series; there is {found}.")


def _oriented(stored: StoredVolume, rescale: Rescale | None, spacing_mm: Spacing | None, policy: HuPolicy) -> Volume:
    voxels, affine = as_shown(stored.voxels, stored.affine)
    own: Spacing = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0)[::-1])  # type: ignore[assignment]
    remarks = stored.remarks
    if spacing_mm is not None:
        check_spacing(spacing_mm)
        if not np.allclose(own, spacing_mm, rtol=_SPACING_TOLERANCE):
            shown = " x ".join(f"{length:g}" for length in own)
            remarks = (*remarks, f"the file says {shown} mm (z, y, x); the metadata table is believed")
            affine = affine @ np.diag([*(np.array(spacing_mm) / own)[::-1], 1.0])
        own = spacing_mm
    decision = decide_hu(voxels, rescale, policy)
    return Volume(
        voxels, own, affine, decision.rescale, decision.state, decision.reason,
        axis_codes(stored.affine), round(obliquity_deg(stored.affine), 3), remarks,
    )  # fmt: skip
