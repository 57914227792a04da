"""A volume with its geometry: no voxel without the millimetres around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsi_dino.errors import VolumeError

LARGEST_SPACING_MM = 100.0


@dataclass(frozen=True)
class Rescale:
    """How stored values become Hounsfield units: ``slope * stored + intercept``; `source` says who says so."""

    slope: float
    intercept: float
    source: str

    def __post_init__(self) -> None:
        if not (np.isfinite(self.slope) and np.isfinite(self.intercept)) or self.slope == 0:
            raise VolumeError(
                f"Rescaling to HU: slope {self.slope:g} and intercept {self.intercept:g} ({self.source}) make no sense."
            )


@dataclass(frozen=True)
class StoredVolume:
    """What a file holds, before anything was decided about it.

    Attributes:
        path: the file, or the folder of a series.
        voxels: ``(i, j, k)`` as stored, finite.
        affine: float64 ``(4, 4)``, voxel indices to mm in RAS+.
        rescale: what the file itself says about grey values and has not been applied yet, or None.
        remarks: what was unusual.
    """

    path: Path
    voxels: np.ndarray
    affine: np.ndarray
    rescale: Rescale | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    """Axial slices from inferior to superior, anterior on top, the patient's right on the left.

    Values stay in the number format of the file, a quarter of what float64 would take; `hu` converts the
    slices that are asked for.

    Attributes:
        voxels: ``(n_slices, height, width)``, stored values.
        spacing_mm: distances of voxel centres in (z, y, x).
        affine: float64 ``(4, 4)``, indices (x, y, z) of `voxels` to mm in RAS+.
        rescale: stored values to Hounsfield units; slope 1, intercept 0 where the file holds HU.
        hu_state: ``"applied"`` (by us, now) or ``"already"`` (the file holds HU).
        hu_reason: why that was decided.
        stored_axes: how the axes ran in the file, e.g. ``"LPS"``.
        obliquity_deg: largest angle between an axis of the volume and the patient's; nothing is resampled.
        remarks: what was unusual.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    rescale: Rescale
    hu_state: str
    hu_reason: str = ""
    stored_axes: str = "LPS"
    obliquity_deg: float = 0.0
    remarks: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or 0 in self.voxels.shape:
            raise VolumeError(f"Making a volume: expected (n_slices, height, width), got {self.voxels.shape}.")
        check_spacing(self.spacing_mm)

    def __len__(self) -> int:
        return len(self.voxels)

    def hu(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return Hounsfield units of slices ``start .. stop``, float32 ``(n, height, width)``, contiguous."""
        return self.to_hu(np.array(self.voxels[start:stop], np.float32, order="C"))

    def to_hu(self, stored: np.ndarray) -> np.ndarray:
        """Turn float32 stored values into Hounsfield units, in place; returns them."""
        if (self.rescale.slope, self.rescale.intercept) != (1.0, 0.0):
            stored *= np.float32(self.rescale.slope)
            stored += np.float32(self.rescale.intercept)
        return stored


def check_spacing(spacing_mm: tuple[float, ...]) -> None:
    """Refuse distances that no scanner has.

    Raises:
        VolumeError: a distance is not above 0 and below 100 mm.
    """
    if not all(np.isfinite(s) and 0 < s < LARGEST_SPACING_MM for s in spacing_mm):
        shown = " x ".join(f"{s:g}" for s in spacing_mm)
        raise VolumeError(
            f"Placing a volume in space: voxels of {shown} mm (z, y, x) make no sense; correct the header."
        )
