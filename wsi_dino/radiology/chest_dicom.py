"""One grey picture from a DICOM file of a radiograph, whatever its transfer syntax."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError, ImageError

# Transfer syntaxes of compressed frames and the decoder of imagecodecs for each (DICOM PS3.5, section 10)
_DECODERS = {
    "1.2.840.10008.1.2.4.50": ("JPEG baseline", "jpeg8_decode"),
    "1.2.840.10008.1.2.4.51": ("JPEG extended", "jpeg8_decode"),
    "1.2.840.10008.1.2.4.57": ("JPEG lossless", "ljpeg_decode"),
    "1.2.840.10008.1.2.4.70": ("JPEG lossless SV1", "ljpeg_decode"),
    "1.2.840.10008.1.2.4.80": ("JPEG-LS lossless", "jpegls_decode"),
    "1.2.840.10008.1.2.4.81": ("JPEG-LS near-lossless", "jpegls_decode"),
    "1.2.840.10008.1.2.4.90": ("JPEG 2000 lossless", "jpeg2k_decode"),
    "1.2.840.10008.1.2.4.91": ("JPEG 2000", "jpeg2k_decode"),
    "1.2.840.10008.1.2.4.201": ("HTJ2K lossless", "htj2k_decode"),
    "1.2.840.10008.1.2.4.202": ("HTJ2K lossless RPCL", "htj2k_decode"),
    "1.2.840.10008.1.2.4.203": ("HTJ2K", "htj2k_decode"),
}
_RLE = "1.2.840.10008.1.2.5"


def require_pydicom() -> None:
    """Check that DICOM can be read at all.

    Raises:
        ConfigError: pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Reading DICOM images: the package pydicom is missing. Install it with: pip install 'wsi_dino[radiology]'"
        ) from error


def read_chest_dicom(path: Path) -> np.ndarray:
    """Return the picture ``(height, width)``, bright = dense, as integers or, where a slope makes them, float32.

    Slope and intercept are applied where both are there (most radiographs have none). MONOCHROME1 is inverted
    within the range that the stored bits allow, after which it is as MONOCHROME2.

    Raises:
        ImageError: no DICOM, cut off, several frames, colour, or a transfer syntax that cannot be decoded.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(path)
    except Exception as error:  # damaged headers bring every kind of error
        raise ImageError(f"Reading {path.name}: no DICOM file, damaged or cut off ({error}).") from error
    try:
        return _picture(path, dataset)
    except ImageError:
        raise
    except Exception as error:  # what bytes of a header mean is found out where it is asked for
        raise ImageError(f"Reading {path.name}: its header makes no sense ({error}).") from error


def _picture(path: Path, dataset: Any) -> np.ndarray:
    if "PixelData" not in dataset:
        raise ImageError(f"Reading {path.name}: a DICOM file without pixels, or cut off before them.")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageError(f"Reading {path.name}: {dataset.NumberOfFrames} frames, expected one picture.")
    stored = _pixels(path, dataset)
    if stored.ndim != 2:
        raise ImageError(f"Reading {path.name}: expected grey values (height, width), got shape {stored.shape}.")
    return _modality(dataset, _dense_is_bright(path, dataset, stored))


def _pixels(path: Path, dataset: Any) -> np.ndarray:
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax:
        raise ImageError(f"Reading {path.name}: it does not say how its pixels are stored (no transfer syntax).")
    name, decoder = _DECODERS.get(syntax, ("", ""))
    try:
        if decoder:
            return _decoded(dataset, decoder)
        if dataset.file_meta.TransferSyntaxUID.is_compressed and syntax != _RLE and "Deflated" not in _name(dataset):
            raise ImageError(f"Reading {path.name}: transfer syntax {_name(dataset)} cannot be decoded here.")
        return np.asarray(dataset.pixel_array)
    except ImageError:
        raise
    except Exception as error:  # each codec has errors of its own, and bytes from disk may bring any of them
        how = f"{name or _name(dataset)} ({syntax})"
        raise ImageError(f"Reading {path.name}: pixels of {how} are damaged or cut off ({error}).") from error


def _name(dataset: Any) -> str:
    return str(getattr(dataset.file_meta.TransferSyntaxUID, "name", "unknown"))


def _decoded(dataset: Any, decoder: str) -> np.ndarray:
    import imagecodecs
    from pydicom.encaps import generate_frames

    decode: Callable[[bytes], np.ndarray] = getattr(imagecodecs, decoder)
    picture = np.asarray(decode(next(generate_frames(dataset.PixelData, number_of_frames=1))))
    expected = (int(dataset.Rows), int(dataset.Columns))
    if picture.shape[:2] != expected:
        raise ValueError(f"{picture.shape[:2]} px instead of {expected}")
    return picture


def _dense_is_bright(path: Path, dataset: Any, stored: np.ndarray) -> np.ndarray:
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip()
    if kind == "MONOCHROME2":
        return stored
    if kind != "MONOCHROME1":
        raise ImageError(f"Reading {path.name}: expected MONOCHROME1 or MONOCHROME2, got {kind}.")
    bits = int(dataset.get("BitsStored") or stored.dtype.itemsize * 8)
    top, bottom = (2 ** (bits - 1) - 1, -(2 ** (bits - 1))) if stored.dtype.kind == "i" else (2**bits - 1, 0)
    inverted = top + bottom - stored.astype(np.int32)
    return np.clip(inverted, *_limits(stored.dtype)).astype(stored.dtype)


def _limits(dtype: np.dtype) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _modality(dataset: Any, stored: np.ndarray) -> np.ndarray:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None or (float(slope) == 1 and float(intercept) == 0):
        return stored
    return np.asarray(stored * np.float32(slope) + np.float32(intercept), np.float32)
