"""Channels and labels of one case on one grid, as radiologists see them; whatever does not fit is said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import VolumeError
from wsi_dino.segmentation.case import Case, SegmentationDataset
from wsi_dino.segmentation.resampling import resampled_onto
from wsi_dino.volumes.nifti_channels import read_channel
from wsi_dino.volumes.orientation import as_shown, obliquity_deg
from wsi_dino.volumes.volume import StoredVolume, check_spacing

# Grids are one when no corner is further off than this part of a voxel: some headers differ in their last digits.
_SAME_GRID_VOXELS = 0.1
_OBLIQUE_DEG = 1.0


@dataclass(frozen=True)
class CaseVolumes:
    """What a case holds.

    Attributes:
        channels: float32 ``(z, y, x)`` each, as shown.
        labels: uint8 ``(z, y, x)``, or None.
        spacing_mm: (z, y, x).
        remarks: what was unusual and how it was taken.
    """

    channels: tuple[npt.NDArray[np.float32], ...]
    labels: npt.NDArray[np.uint8] | None
    spacing_mm: tuple[float, float, float]
    remarks: tuple[str, ...] = ()


def read_case(case: Case, dataset: SegmentationDataset) -> CaseVolumes:
    """Read all channels and the labels of a case, turned so that ``[z, y, x]`` is as shown on a screen.

    Channels of another grid are resampled by geometry onto the reference's where the dataset says that they may
    lie on their own; labels are never resampled.

    Raises:
        VolumeError: a file is missing or damaged, grids do not agree, or labels are not the dataset's.
    """
    if case.problem:
        raise VolumeError(f"Reading case {case.case_id}: {case.problem}")
    stored = [read_channel(file.path, file.index) for file in case.images]
    reference = stored[0] if case.grid_file == case.images[0] else read_channel(case.grid_file.path)
    remarks = list(reference.remarks)
    turned = []
    for volume in stored:
        if not same_grid(volume, reference):
            remarks.append(_other_grid(volume, reference, dataset))
            volume = resampled_onto(volume, reference)  # noqa: PLW2901
        turned.append(np.ascontiguousarray(as_shown(volume.voxels, reference.affine)[0], np.float32))
    labels = None if case.label is None else _labels(case, read_channel(case.label), reference, dataset)
    spacing = _spacing(reference)
    angle = obliquity_deg(reference.affine)
    if angle > _OBLIQUE_DEG:
        remarks.append(f"oblique by {angle:.1f} degrees: slices are as scanned, nothing is resampled")
    return CaseVolumes(tuple(turned), labels, spacing, tuple(remarks))


def _spacing(volume: StoredVolume) -> tuple[float, float, float]:
    _, affine = as_shown(volume.voxels, volume.affine)
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    check_spacing((z, y, x))
    return z, y, x


def same_grid(one: StoredVolume, other: StoredVolume) -> bool:
    """Tell whether two volumes have the same shape and lie in the same place, to a tenth of a voxel."""
    if one.voxels.shape != other.voxels.shape:
        return False
    ends = np.array([0.0, 1.0])
    corners = np.stack(np.meshgrid(*(ends * (side - 1) for side in other.voxels.shape), indexing="ij"), -1)
    corners = np.c_[corners.reshape(-1, 3), np.ones(8)]
    apart = np.linalg.norm(corners @ (one.affine - other.affine).T, axis=1).max()
    smallest = np.linalg.norm(other.affine[:3, :3], axis=0).min()
    return bool(apart <= _SAME_GRID_VOXELS * smallest)


def _other_grid(volume: StoredVolume, reference: StoredVolume, dataset: SegmentationDataset) -> str:
    shapes = f"{volume.voxels.shape} against {reference.voxels.shape} voxels"
    if not dataset.resample:
        raise VolumeError(
            f"Reading {volume.path}: its grid is not that of {reference.path} ({shapes}, or another place). Channels "
            f"of {dataset.name} share one grid; resample them first."
        )
    return f"{volume.path.name} resampled onto the grid of {reference.path.name} ({shapes})"


def _labels(
    case: Case, volume: StoredVolume, reference: StoredVolume, dataset: SegmentationDataset
) -> npt.NDArray[np.uint8]:
    if not same_grid(volume, reference):
        raise VolumeError(
            f"Reading {volume.path}: the labels do not lie on the grid of {reference.path} ({volume.voxels.shape} "
            f"against {reference.voxels.shape} voxels, or another place)."
        )
    values = as_shown(volume.voxels, reference.affine)[0]
    whole = np.rint(values)  # some labels are stored as floating point
    if values.dtype.kind == "f" and float(np.abs(values - whole).max()) > 1e-3:
        raise VolumeError(f"Reading {volume.path}: labels are not whole numbers. Was the label map interpolated?")
    unknown = sorted(set(np.unique(whole).astype(int).tolist()) - {0, *dataset.classes})
    if unknown:
        known = ", ".join(map(str, [0, *dataset.classes]))
        shown = ", ".join(map(str, unknown[:5]))
        raise VolumeError(f"Reading {volume.path}: label values {shown}; {dataset.name} has {known}.")
    return np.ascontiguousarray(whole.astype(np.uint8))
