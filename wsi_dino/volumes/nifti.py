"""NIfTI files, read in order and in their own number format: memory for one volume and one slice, not for four."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import VolumeError, first_line
from wsi_dino.volumes.volume import StoredVolume

ENDINGS = (".nii.gz", ".nii")
_AT_ONCE_BYTES = 4 * 2**20
_HEAD_BYTES = 348
_BROKEN = (OSError, EOFError, OverflowError, ValueError, zlib.error)  # of streams, and of numbers that no file has


def read_nifti(path: Path) -> StoredVolume:
    """Read one 3D volume.

    Scaling of the header is applied as the format demands (it is how numbers were packed, and says nothing
    of Hounsfield units). Integers stay integers; floating point becomes float32.

    Raises:
        VolumeError: no NIfTI file, truncated, not 3D, NaN or infinity among the voxels, or a header without sense.
    """
    image = _opened(path)
    shape = _shape(path, image)
    voxels = _scaled(_stored_values(path, image, shape), image)
    codes = [int(image.header[name]) for name in ("sform_code", "qform_code") if name in image.header]
    remarks = () if any(codes) else ("the header does not say how the patient lies; the format's default is taken",)
    return StoredVolume(path, voxels, np.asarray(image.affine, np.float64), remarks=remarks)


def _opened(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise VolumeError(
            f"Reading {path}: NIfTI needs the package nibabel. Install it with: pip install 'wsi_dino[radiology]'"
        ) from error
    _check_head(path)
    try:
        return nibabel.load(path)
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise VolumeError(f"Reading {path}: not a NIfTI file, or its head is damaged ({first_line(error)}).") from error
    except nibabel.spatialimages.HeaderDataError as error:
        raise VolumeError(f"Reading {path}: its header makes no sense ({first_line(error)}).") from error


def _check_head(path: Path) -> None:
    """Look at the header as it stands: nibabel silently puts 1 mm in the place of 0.

    Raises:
        VolumeError: no such file, no NIfTI, or voxels without size.
    """
    from nibabel.openers import ImageOpener

    try:
        with ImageOpener(str(path)) as stream:
            head: bytes = stream.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise VolumeError(f"Reading {path}: there is no such file.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(
            f"Reading {path}: not a NIfTI file, or truncated in its head ({first_line(error)})."
        ) from error
    if head[4:7] == b"n+2":
        return
    if len(head) < _HEAD_BYTES or head[344:347] != b"n+1":
        raise VolumeError(f"Reading {path}: not a NIfTI file: its head lacks the mark n+1.")
    order = "<" if int.from_bytes(head[:4], "little") == _HEAD_BYTES else ">"
    pixdim, codes = np.frombuffer(head, f"{order}f4", 3, 80), np.frombuffer(head, f"{order}i2", 2, 252)
    if codes[1] == 0 and not ((pixdim > 0) & np.isfinite(pixdim)).all():
        shown = " x ".join(f"{length:g}" for length in pixdim)
        raise VolumeError(f"Reading {path}: its header gives voxels of {shown} mm (x, y, z); correct the header.")


def _shape(path: Path, image: Any) -> tuple[int, int, int]:
    shape = tuple(int(side) for side in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or min(shape) < 1:
        raise VolumeError(
            f"Reading {path}: expected one volume (x, y, z), got shape {image.shape}. Take the series apart first."
        )
    return shape


def _stored_values(path: Path, image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Read slice after slice, as they lie in the file: x fastest."""
    stored = image.get_data_dtype()
    if stored.kind not in "iuf" or stored.itemsize > 8:
        raise VolumeError(f"Reading {path}: voxels are of type {stored}, expected one whole or real number a voxel.")
    stored = stored.newbyteorder(image.header.endianness)
    try:
        values = np.empty(shape, _lean(stored), order="F")
    except (ValueError, MemoryError) as error:
        sides = " x ".join(map(str, shape))
        raise VolumeError(f"Reading {path}: its header promises {sides} voxels, more than memory holds.") from error
    plane = shape[0] * shape[1]
    at_once = max(1, _AT_ONCE_BYTES // (plane * stored.itemsize))
    from nibabel.openers import ImageOpener

    with ImageOpener(str(path)) as stream:
        _seek(path, stream, image.dataobj.offset)
        for start in range(0, shape[2], at_once):
            stop = min(start + at_once, shape[2])
            block = np.frombuffer(
                _read(path, stream, plane * (stop - start) * stored.itemsize, start, shape[2]), stored
            )
            _check_finite(path, block, start, plane)
            values[:, :, start:stop] = block.reshape(shape[0], shape[1], stop - start, order="F")
    return values


def _lean(stored: np.dtype) -> np.dtype:
    if stored.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int32) if stored.itemsize > 2 else stored.newbyteorder("=")


def _seek(path: Path, stream: Any, offset: int) -> None:
    try:
        stream.seek(offset)
    except _BROKEN as error:
        raise VolumeError(f"Reading {path}: no voxels at byte {offset}, where its header puts them.") from error


def _read(path: Path, stream: Any, n_bytes: int, first_slice: int, n_slices: int) -> bytes:
    where = f"at slice {first_slice} of {n_slices}"
    try:
        content: bytes = stream.read(n_bytes)
    except _BROKEN as error:
        raise VolumeError(
            f"Reading {path}: truncated or damaged {where} ({first_line(error)}). Copy it anew."
        ) from error
    if len(content) != n_bytes:
        raise VolumeError(f"Reading {path}: truncated {where}, the header promises more. Copy it anew.")
    return content


def _check_finite(path: Path, block: np.ndarray, first_slice: int, plane: int) -> None:
    if block.dtype.kind != "f":
        return
    wrong = ~np.isfinite(block)
    if wrong.any():
        where = first_slice + int(wrong.argmax()) // plane
        raise VolumeError(
            f"Reading {path}: {int(wrong.sum())} voxels are NaN or infinite, the first in slice {where}. "
            "Nothing is guessed in their place."
        )


def _scaled(values: np.ndarray, image: Any) -> np.ndarray:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) == (1, 0):
        return values
    scaled = values.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(intercept)
    return scaled
