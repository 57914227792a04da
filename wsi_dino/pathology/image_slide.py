"""Plain pictures as slides of one level: JPEG, PNG, BMP and TIFF that OpenSlide refuses."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsi_dino.errors import SlideError
from wsi_dino.pathology.slide import WHITE, Slide, composite_on_white, plausible_mpp

MAX_IMAGE_PX = 2**30
"""Largest picture that is decoded: 32,768 x 32,768 px, 3 GiB as RGB. Pillow's own limit stops at a sixth of it."""

_BAND_AREA_PX = 2**24
_MM_PER_INCH = 25.4
_SHARED_LIMIT = threading.Lock()
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, RuntimeError, MemoryError, EOFError)


class ImageSlide(Slide):
    """A picture as a slide with one level, decoded once, at the first read, and kept until it is closed.

    Grey and palette pictures become RGB, transparency is laid on white, 16-bit values keep their high
    byte, CMYK is converted. The EXIF orientation is ignored: coordinates mean stored pixels, as they do
    in every other reader of slides (OpenSlide, CLAM, QuPath), so that annotations keep fitting.

    Raises:
        SlideError: not an image, damaged, or larger than `MAX_IMAGE_PX`.
    """

    backend = "image"

    def __init__(self, path: Path, slide_id: str) -> None:
        size, dpi = _image_header(path)
        if size[0] * size[1] > MAX_IMAGE_PX:
            raise SlideError(
                f"Opening {path}: {size[0]}x{size[1]} px is more than a plain image may have ({MAX_IMAGE_PX} px), "
                "since it is decoded whole. Convert it: `vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg`."
            )
        mpp, source = _mpp_of_dpi(dpi)
        super().__init__(slide_id, path, (size,), mpp, source)
        self._pixels: np.ndarray | None = None
        self._decoding = threading.Lock()

    def read_level(self, xy_level: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
        self._check_level(level)
        return crop_on_white(self._decoded(), xy_level, wh)

    def read_level_rgb_raw(self, level: int) -> np.ndarray:
        self._check_level(level)
        return self._decoded().copy()

    def _decoded(self) -> np.ndarray:
        with self._decoding:
            if self._pixels is None:
                self._pixels = _decode(self.path)
            return self._pixels

    def close(self) -> None:
        self._pixels = None


def crop_on_white(pixels: np.ndarray, xy: tuple[int, int], wh: tuple[int, int]) -> np.ndarray:
    """Return a copy of `wh` px of uint8 `pixels` ``(height, width, 3)`` from `xy`, white where there are none.

    Examples:
        >>> crop_on_white(np.zeros((2, 2, 3), np.uint8), (1, 1), (2, 1))[..., 0].tolist()
        [[0, 255]]
    """
    (x, y), (w, h) = xy, wh
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if (x0, y0, x1, y1) == (x, y, x + w, y + h):
        return pixels[y0:y1, x0:x1].copy()
    region = np.full((h, w, 3), WHITE, np.uint8)
    if x0 < x1 and y0 < y1:
        region[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0:y1, x0:x1]
    return region


def _open_image(path: Path) -> Image.Image:
    # Pillow's guard against decompression bombs is one global number, far below a slide's size; ours
    # (MAX_IMAGE_PX) is checked right after, before anything is decoded.
    with _SHARED_LIMIT, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that Pillow cannot read and we do not use
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _image_header(path: Path) -> tuple[tuple[int, int], tuple[float, float] | None]:
    try:
        with _open_image(path) as image:
            dpi = image.info.get("dpi")
            return (int(image.width), int(image.height)), None if dpi is None else (float(dpi[0]), float(dpi[1]))
    except UnidentifiedImageError:
        return _tiff_header(path), None
    except _DECODE_ERRORS as error:
        raise SlideError(f"Opening {path}: a damaged image ({error}). Copy it again.") from error


def _decode(path: Path) -> np.ndarray:
    try:
        with _open_image(path) as image:
            if image.format == "JPEG" and image.mode == "RGB":
                pixels = _decode_jpeg(path, (image.height, image.width, 3))
                if pixels is not None:
                    return pixels
            image.load()
            return _as_rgb(image)
    except UnidentifiedImageError:
        return _decode_tiff(path)
    except _DECODE_ERRORS as error:
        raise SlideError(
            f"Reading {path}: the image cannot be decoded ({error}). It is damaged or truncated."
        ) from error


def _decode_jpeg(path: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Decode an undamaged JPEG in a third of Pillow's time, to the same pixels; None leaves it to Pillow.

    The decoder fills in grey where the data ends early, so only a file with its end marker is given to it.
    """
    import imagecodecs

    data = path.read_bytes()
    if not data[-64:].rstrip(b"\0").endswith(b"\xff\xd9"):
        return None
    try:
        pixels = np.asarray(imagecodecs.jpeg8_decode(data))
    except (imagecodecs.Jpeg8Error, ValueError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _as_rgb(image: Image.Image) -> np.ndarray:
    # In bands: Pillow keeps 4 bytes a px itself, and a conversion of the whole would double that.
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND_AREA_PX // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = _band_as_rgb(image.crop((0, top, image.width, bottom)))
    return pixels


def _band_as_rgb(band: Image.Image) -> np.ndarray:
    if band.mode.startswith("I") or band.mode == "F":
        return np.repeat(_as_uint8(np.asarray(band))[..., None], 3, axis=2)
    if band.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in band.info:
        return composite_on_white(np.asarray(band.convert("RGBA")))
    return np.asarray(band.convert("RGB"))


def _as_uint8(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind in "iu":  # 16-bit scales; Pillow widens them to 32-bit integers
        return (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
    raise ValueError(f"pixels of type {values.dtype} have no agreed scale; save the image as 8 or 16 bit")


def _tiff_header(path: Path) -> tuple[int, int]:
    page = _first_tiff_page(path)
    return int(page.imagewidth), int(page.imagelength)


def _first_tiff_page(path: Path) -> Any:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return tiff.pages[0].aspage()
    except (tifffile.TiffFileError, *_DECODE_ERRORS, IndexError, KeyError) as error:
        raise SlideError(f"Opening {path}: not a slide and not an image, or its header is damaged.") from error


def _decode_tiff(path: Path) -> np.ndarray:
    import tifffile

    try:
        pixels = _as_uint8(np.asarray(tifffile.imread(path, key=0)))
    except (tifffile.TiffFileError, *_DECODE_ERRORS, IndexError, KeyError) as error:
        raise SlideError(f"Reading {path}: the TIFF cannot be decoded ({error}).") from error
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        return composite_on_white(pixels) if pixels.shape[2] == 4 else pixels
    raise SlideError(f"Reading {path}: pixels of shape {pixels.shape} are neither grey, RGB nor RGBA.")


def _mpp_of_dpi(dpi: tuple[float, float] | None) -> tuple[tuple[float, float] | None, str]:
    if dpi is None or min(dpi) <= 1:  # 1 is what writers put where there is no resolution
        return None, "the image holds no resolution"
    return plausible_mpp((_MM_PER_INCH * 1000 / dpi[0], _MM_PER_INCH * 1000 / dpi[1]), "image resolution tag")
