"""A folder of DICOM slices as one volume: one series, sorted by position, nothing missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import VolumeError, first_line
from wsi_dino.volumes.volume import Rescale, StoredVolume

_TAGS = ["SeriesInstanceUID", "Modality", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows",
         "Columns", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "SeriesDescription"]  # fmt: skip
_PLACE_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
_SAME_DIRECTION = 1e-3
_GAP = 1.5  # times the usual distance of slices
_SHOWN = 3


def read_dicom_series(folder: Path) -> StoredVolume:
    """Read all slices of the one CT series in a folder (its subfolders too).

    Slices are sorted by where they lie, not by name or number. Where slope and intercept differ between
    slices they are applied here; where they are the same they are handed on.

    Raises:
        VolumeError: no DICOM, several series, another modality, slices of unlike size or direction, two at one
            place, one missing between others, or pixels that cannot be decoded.
    """
    try:
        return _series(folder)
    except VolumeError:
        raise
    except Exception as error:  # what bytes of a header mean is found out where it is asked for, with any kind of error
        raise VolumeError(f"Reading {folder}: the header of a slice makes no sense ({first_line(error)}).") from error


def _series(folder: Path) -> StoredVolume:
    slices = _slices(folder)
    _require_one_series(folder, slices)
    normal = _require_one_geometry(folder, slices)
    places = np.array([float(normal @ np.asarray(head.ImagePositionPatient, float)) for _, head in slices])
    order = np.argsort(places, kind="stable")
    slices, places = [slices[i] for i in order], places[order]
    distance_mm = _require_even(folder, slices, places)
    voxels, rescale = _pixels(folder, slices)
    return StoredVolume(folder, voxels, _affine(slices, normal, distance_mm), rescale)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _slices(folder: Path) -> list[tuple[Path, Any]]:
    try:
        import pydicom
    except ImportError as error:
        raise VolumeError(
            f"Reading {folder}: DICOM needs the package pydicom. Install it with: pip install 'wsi_dino[radiology]'"
        ) from error
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "DICOMDIR" and _is_dicom(path)
    ]
    slices = []
    for path in paths:
        try:
            head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            for tag in _TAGS:
                head.get(tag)  # bytes become numbers here
        except Exception as error:
            raise VolumeError(f"Reading {path}: a damaged DICOM file ({first_line(error)}).") from error
        slices.append((path, head))
    if not slices:
        raise VolumeError(f"Reading {folder}: there is no DICOM file in it.")
    return slices


def _require_one_series(folder: Path, slices: list[tuple[Path, Any]]) -> None:
    series = Counter((str(head.get("SeriesInstanceUID")), str(head.get("SeriesDescription", ""))) for _, head in slices)
    if len({uid for uid, _ in series}) > 1:
        listed = ", ".join(f"{text or uid} ({n} slices)" for (uid, text), n in series.most_common(_SHOWN))
        raise VolumeError(
            f"Reading {folder}: it mixes {len(series)} series: {listed}. Put each into a folder of its own."
        )
    for path, head in slices:
        if str(head.get("Modality", "CT")) != "CT":
            raise VolumeError(f"Reading {path}: modality is {head.Modality}, expected CT.")
        if int(head.get("NumberOfFrames", 1) or 1) > 1:
            raise VolumeError(
                f"Reading {path}: several frames in one file are not read here. Convert it to NIfTI first."
            )


def _require_one_geometry(folder: Path, slices: list[tuple[Path, Any]]) -> np.ndarray:
    """Return the direction across the slices, in DICOM's LPS+."""
    for path, head in slices:
        missing = [tag for tag in _PLACE_TAGS if head.get(tag) is None]
        if missing:
            raise VolumeError(f"Reading {path}: it lacks {missing[0]}: not a slice of a volume (a scout view?).")
    first = _geometry(slices[0][1])
    for path, head in slices[1:]:
        if not np.allclose(_geometry(head), first, atol=_SAME_DIRECTION):
            raise VolumeError(
                f"Reading {path}: size, spacing or direction differ from {slices[0][0].name}: slices of several series."
            )
    across: np.ndarray = np.cross(first[:3], first[3:6])
    return across


def _geometry(head: Any) -> np.ndarray:
    return np.array([*head.ImageOrientationPatient, *head.PixelSpacing, head.Rows, head.Columns], float)


def _require_even(folder: Path, slices: list[tuple[Path, Any]], places: np.ndarray) -> float:
    """Return the distance of slices in mm; a single slice is taken to be 1 mm from its neighbours."""
    if len(places) == 1:
        return 1.0
    steps = np.diff(places)
    usual = float(np.median(steps))
    for index, step in enumerate(steps):
        pair = f"{slices[index][0].name} and {slices[index + 1][0].name}"
        if step < usual / 100 or step == 0:
            raise VolumeError(f"Reading {folder}: {pair} lie at the same place ({places[index]:g} mm). Remove one.")
        if step > _GAP * usual:
            raise VolumeError(
                f"Reading {folder}: {step:g} mm between {pair}, {usual:g} mm elsewhere: a slice is missing."
            )
    return float((places[-1] - places[0]) / (len(places) - 1))


def _pixels(folder: Path, slices: list[tuple[Path, Any]]) -> tuple[np.ndarray, Rescale | None]:
    scales = [_scale(head) for _, head in slices]
    one = scales[0] if len(set(scales)) == 1 else None
    first = _pixel_array(slices[0][0])
    dtype = first.dtype if len(set(scales)) == 1 else np.dtype(np.float32)
    voxels = np.empty((*first.T.shape, len(slices)), dtype, order="F")
    for index, ((path, _), scale) in enumerate(zip(slices, scales, strict=True)):
        stored = _pixel_array(path) if index else first
        if len(set(scales)) > 1:
            if scale is None:
                raise VolumeError(f"Reading {path}: no slope and intercept, which other slices of {folder} have.")
            stored = stored.astype(np.float32) * scale[0] + scale[1]
        voxels[:, :, index] = stored.T
    return voxels, None if one is None else Rescale(*one, "DICOM header")


def _scale(head: Any) -> tuple[float, float] | None:
    slope, intercept = head.get("RescaleSlope"), head.get("RescaleIntercept")
    return None if slope is None or intercept is None else (float(slope), float(intercept))


def _pixel_array(path: Path) -> np.ndarray:
    import pydicom

    try:
        pixels: np.ndarray = pydicom.dcmread(path).pixel_array
    except Exception as error:  # each codec has errors of its own
        raise VolumeError(f"Reading {path}: its pixels cannot be decoded ({first_line(error)}).") from error
    if pixels.ndim != 2:
        raise VolumeError(f"Reading {path}: expected one grey slice, got pixels of shape {pixels.shape}.")
    return pixels


def _affine(slices: list[tuple[Path, Any]], normal: np.ndarray, distance_mm: float) -> np.ndarray:
    head = slices[0][1]
    row_spacing, column_spacing = (float(value) for value in head.PixelSpacing)
    along = np.asarray(head.ImageOrientationPatient, float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along[:3] * column_spacing, along[3:] * row_spacing
    affine[:3, 2], affine[:3, 3] = normal * distance_mm, np.asarray(head.ImagePositionPatient, float)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS+ to RAS+
