"""A volume seen on another volume's grid: by where voxels lie in the patient, never by the shape of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsi_dino.errors import VolumeError
from wsi_dino.volumes.volume import StoredVolume


def resampled_onto(volume: StoredVolume, reference: StoredVolume) -> StoredVolume:
    """Return `volume` at the voxel centres of `reference`, trilinear; outside it takes its lowest value.

    Raises:
        VolumeError: SimpleITK is not installed, or the volumes do not overlap at all.
    """
    sitk = _simpleitk(volume)
    moved = _image(sitk, volume)
    lowest = float(volume.voxels.min())
    values = sitk.Resample(moved, _image(sitk, reference, pixels=False), sitk.Transform(), sitk.sitkLinear, lowest)
    inside = sitk.Resample(
        sitk.Cast(moved * 0 + 1, sitk.sitkUInt8), _image(sitk, reference, pixels=False), sitk.Transform(),
        sitk.sitkNearestNeighbor, 0,
    )  # fmt: skip
    if not sitk.GetArrayViewFromImage(inside).any():
        raise VolumeError(f"Resampling {volume.path}: it does not overlap {reference.path} anywhere.")
    voxels = sitk.GetArrayFromImage(values).transpose(2, 1, 0)
    return StoredVolume(volume.path, voxels, reference.affine)


def _simpleitk(volume: StoredVolume) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise VolumeError(
            f"Resampling {volume.path}: this needs the package SimpleITK. Install it with: "
            "pip install 'wsi_dino[segmentation]'"
        ) from error
    return SimpleITK


def _image(sitk: Any, volume: StoredVolume, *, pixels: bool = True) -> Any:
    """Return a SimpleITK image; its world is LPS+, ours RAS+."""
    if pixels:
        image = sitk.GetImageFromArray(np.asarray(volume.voxels, np.float32).transpose(2, 1, 0))
    else:
        image = sitk.Image([int(side) for side in volume.voxels.shape], sitk.sitkUInt8)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(_orthonormal(affine[:3, :3] / spacing).ravel().tolist())
    return image


def _orthonormal(directions: np.ndarray) -> np.ndarray:
    """Return the nearest rotation or reflection: ITK takes no sheared grid, headers carry rounding."""
    left, _, right = np.linalg.svd(directions)
    nearest: np.ndarray = left @ right
    if not np.allclose(nearest, directions, atol=1e-2):
        raise VolumeError("Resampling: the axes of a volume are not at right angles; its header is wrong.")
    return nearest
