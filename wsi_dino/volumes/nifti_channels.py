"""One channel of a NIfTI file, and label maps written back onto the grid they came from."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import VolumeError
from wsi_dino.provenance import write_atomically
from wsi_dino.volumes.nifti import ENDINGS, read_nifti
from wsi_dino.volumes.orientation import as_shown
from wsi_dino.volumes.volume import StoredVolume


def read_channel(path: Path, index: int | None = None) -> StoredVolume:
    """Read one 3D channel, of a file with one or of one with several on its last axis.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        index: of the channel, from 0; None for a file that is one volume.

    Raises:
        VolumeError: as `read_nifti`; or the file has no such channel.
    """
    if index is None:
        return read_nifti(path)
    image = _opened(path)
    if len(image.shape) == 3 and index == 0:
        return read_nifti(path)
    if len(image.shape) != 4 or not 0 <= index < image.shape[3]:
        raise VolumeError(
            f"Reading {path}: expected channel {index} on a fourth axis, got shape {image.shape}. Does dataset.json "
            "name the right channels?"
        )
    try:
        values = np.asarray(image.dataobj[..., index], np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise VolumeError(f"Reading {path}: truncated or damaged ({error}). Copy it anew.") from error
    if not np.isfinite(values).all():
        raise VolumeError(f"Reading {path}: channel {index} has voxels that are NaN or infinite.")
    return StoredVolume(path, values, np.asarray(image.affine, np.float64))


def _opened(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise VolumeError(
            f"Reading {path}: NIfTI needs the package nibabel. Install it with: pip install 'wsi_dino[radiology]'"
        ) from error
    if not path.is_file():
        raise VolumeError(f"Reading {path}: there is no such file.")
    if not path.name.endswith(ENDINGS):
        raise VolumeError(f"Reading {path}: expected {' or '.join(ENDINGS)}.")
    try:
        return nibabel.Nifti1Image.from_filename(path)
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise VolumeError(f"Reading {path}: not a NIfTI file, or its head is damaged ({error}).") from error


def write_labels_like(path: Path, labels: npt.NDArray[np.uint8], source: Path) -> None:
    """Write a label map on exactly the grid of `source`: shape, affine, its codes and units.

    Args:
        path: ``.nii.gz`` to write.
        labels: uint8 ``(z, y, x)`` as shown (see `as_shown`), the voxels of `source` turned.
        source: the image that was segmented; of several channels the first three axes count.

    Raises:
        VolumeError: the shape is not that of `source`.
        StorageError: the disk is full or the folder cannot be written.
    """
    _write_like(path, labels, source)


def write_image_like(path: Path, values: npt.NDArray[np.float32], source: Path) -> None:
    """Write grey values, float32 ``(z, y, x)`` as shown, on exactly the grid of `source`; as `write_labels_like`."""
    _write_like(path, values, source)


def _write_like(path: Path, values: npt.NDArray[Any], source: Path) -> None:
    import nibabel

    image = _opened(source)
    shape = (*image.shape, 1, 1)[:3]
    stored = np.zeros(shape, values.dtype)
    shown, _ = as_shown(stored, image.affine)
    if shown.shape != values.shape:
        raise VolumeError(f"Writing {path}: the voxels are {values.shape}, {source} is {shown.shape} (z, y, x).")
    shown[...] = values  # a view of `stored`
    make: Any = nibabel.Nifti1Image
    written = make(stored, image.affine, _header_for(image.header, values.dtype))
    for kind in ("sform", "qform"):
        getattr(written, f"set_{kind}")(getattr(image, f"get_{kind}")(), int(image.header[f"{kind}_code"]))
    with write_atomically(path) as temporary:
        temporary.write_bytes(_compressed(written.to_bytes()))


def _header_for(header: Any, dtype: np.dtype) -> Any:
    header = header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    return header


def _compressed(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content, compresslevel=4, mtime=0)
