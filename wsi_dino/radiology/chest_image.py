"""A radiograph from a file, and the one named way from its grey values to what an encoder is shown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.errors import ImageError

DICOM_ENDINGS = (".dcm", ".dicom")
_MAX_PIXELS = 200_000_000
Aspect = Literal["pad", "squash", "crop"]
Intensity = Literal["native", "minmax", "max"]


class ChestView(BaseModel):
    """What an encoder is shown of a radiograph; the transform ``grey_square_rgb``.

    Grey values of 8 bits, a resize with antialiasing, a square, and the grey copied to three channels.

    Attributes:
        size_px: side of the square.
        aspect: of an image that is not square: ``pad`` (longest side to the square, black beside it), ``squash``
            (both sides to the square) or ``crop`` (shortest side to the square, the middle of it).
        crop_fraction: share of the side that is kept, the middle: the image is first brought to a square of
            ``size_px / crop_fraction``. 1 keeps the whole image.
        interpolation: of the resize.
        intensity: to 8 bits: ``native`` keeps 8-bit values and brings least and greatest of deeper images to 0 and
            255; ``minmax`` does that to all; ``max`` brings the greatest value to 255 (MGCA's way).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    transform: Literal["grey_square_rgb/1"] = "grey_square_rgb/1"
    size_px: int = Field(ge=1)
    aspect: Aspect = "pad"
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    intensity: Intensity = "native"

    @property
    def text(self) -> str:
        """In words; part of the identity of features."""
        kept = "whole image" if self.crop_fraction == 1 else f"middle {self.crop_fraction:g} of the image"
        return f"{kept}, {self.aspect} to {self.size_px} px, {self.interpolation}, {self.intensity} grey as RGB"

    @property
    def resized_px(self) -> int:
        """Side of the square before the middle is cut out."""
        return max(self.size_px, round(self.size_px / self.crop_fraction))


@dataclass(frozen=True)
class ChestImage:
    """A radiograph as stored.

    Attributes:
        grey: ``(height, width)``, bright = dense.
        sha256: first 32 hex digits of the file's.
    """

    grey: np.ndarray
    sha256: str


def read_chest_image(path: Path) -> ChestImage:
    """Read PNG, JPEG, TIFF, BMP (grey of 8 or 16 bits, or colour, which is made grey) or DICOM.

    Raises:
        ImageError: the file is missing, cut off, damaged or no image, or every pixel has one value.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"Reading {path.name}: {error.strerror or error}.") from error
    if not content:
        raise ImageError(f"Reading {path.name}: the file is empty.")
    grey = _dicom(path) if _is_dicom(path, content) else _picture(path, content)
    grey = _finite(path, grey)
    if grey.min() == grey.max():
        raise ImageError(f"Reading {path.name}: every pixel is {grey.flat[0]:g}; it shows nothing.")
    return ChestImage(grey, hashlib.sha256(content).hexdigest()[:32])


def _is_dicom(path: Path, content: bytes) -> bool:
    return content[128:132] == b"DICM" or path.suffix.lower() in DICOM_ENDINGS


def _dicom(path: Path) -> np.ndarray:
    from wsi_dino.radiology.chest_dicom import read_chest_dicom

    return read_chest_dicom(path)


def _picture(path: Path, content: bytes) -> np.ndarray:
    import io
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ImageError(f"Reading {path.name}: {image.width} x {image.height} px are too many.")
                return _grey(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # its own text holds an address in memory
        raise ImageError(f"Reading {path.name}: no image of a known format.") from error
    except Exception as error:  # damaged files bring every kind of error out of the decoders
        raise ImageError(f"Reading {path.name}: damaged, cut off or no image ({error}).") from error


def _grey(image: Any) -> np.ndarray:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        return np.asarray(image)
    # also RGBA, as some files of ChestX-ray14 are: their alpha tells nothing
    return np.asarray(image.convert("L"))


def _finite(path: Path, grey: np.ndarray) -> np.ndarray:
    if grey.ndim != 2 or not grey.size:
        raise ImageError(f"Reading {path.name}: expected one grey picture, got shape {grey.shape}.")
    if grey.dtype.kind == "f" and not np.isfinite(grey).all():
        raise ImageError(f"Reading {path.name}: it holds NaN or infinite grey values.")
    return grey


def grey_square_rgb(grey: np.ndarray, view: ChestView) -> np.ndarray:
    """Return uint8 ``(size_px, size_px, 3)``: what an encoder is shown.

    Args:
        grey: ``(height, width)`` of any integer or float type.
        view: how.

    Examples:
        >>> tall = np.full((40, 20), 9, np.uint8)
        >>> shown = grey_square_rgb(tall, ChestView(size_px=8, aspect="pad"))
        >>> shown.shape, shown[4, :, 0].tolist()
        ((8, 8, 3), [0, 0, 9, 9, 9, 9, 0, 0])
    """
    return np.repeat(square_grey(grey, view)[:, :, None], 3, axis=2)


def square_grey(grey: np.ndarray, view: ChestView) -> np.ndarray:
    """Return one channel of `grey_square_rgb`, uint8 ``(size_px, size_px)``."""
    from PIL import Image

    eight = to_eight_bits(grey, view.intensity)
    height, width = eight.shape
    side = view.resized_px
    ratio = side / (max(height, width) if view.aspect == "pad" else min(height, width))
    if view.aspect == "squash":
        new_height = new_width = side
    else:
        new_height, new_width = (max(1, round(length * ratio)) for length in (height, width))
    if (new_height, new_width) != (height, width):
        method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[view.interpolation]
        eight = np.asarray(Image.fromarray(eight).resize((new_width, new_height), method))
    return _middle(_padded(eight, side), view.size_px)


def to_eight_bits(grey: np.ndarray, intensity: Intensity) -> np.ndarray:
    """Return uint8 of the same shape; see `ChestView.intensity`."""
    if intensity == "native" and grey.dtype == np.uint8:
        return grey
    low = 0.0 if intensity == "max" else float(grey.min())
    span = float(grey.max()) - low
    scaled = (grey.astype(np.float64) - low) * (255 / span if span > 0 else 0.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _padded(grey: np.ndarray, side: int) -> np.ndarray:
    lacking = [max(0, side - length) for length in grey.shape]
    if not any(lacking):
        return grey
    return np.pad(grey, [(n // 2, n - n // 2) for n in lacking])


def _middle(grey: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in grey.shape)
    return np.ascontiguousarray(grey[top : top + side, left : left + side])
