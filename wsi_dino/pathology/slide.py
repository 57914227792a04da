"""A slide: levels, resolution, and pixels as uint8 RGB on white. `open_slide` chooses the reader."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from wsi_dino.errors import ConfigError, SlideError, nearest_name

BACKENDS = ("auto", "openslide", "tiled-tiff", "image")
PLAUSIBLE_MPP = (0.02, 10.0)
"""um/px at level 0 that a slide may claim. Print resolutions lie above: 72 dpi = 353, 300 dpi = 85, 2400 dpi = 10.6."""

WHITE = 255
_OVERVIEW_BLOCK_PX = 2048


class Slide(ABC):
    """One opened slide.

    Pixels are uint8 RGB ``(height, width, 3)``; transparent ones are composited on white, and what lies
    outside of the slide is white. A slide is a context manager. Reads of one handle are safe from several
    threads at once and run in parallel: decoding releases the GIL, and the cache of decoded tiles is
    shared, so sharing one handle beats opening one per thread. Handles do not survive a fork or pickling:
    open the slide in the process that reads it.

    Attributes:
        slide_id: text id, by default the file name without its extension.
        path: the file or DICOM folder.
        backend: ``"openslide"``, ``"tiled-tiff"`` or ``"image"``.
        level_dimensions: (width, height) in px of each level, the finest first.
        level_downsamples: per-axis (w0 / w, h0 / h) of each level.
        file_mpp: (mpp_x, mpp_y) in um/px at level 0 as the file says, or None.
        file_mpp_source: where that came from, or why there is none.
    """

    slide_id: str
    path: Path
    backend: str
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[tuple[float, float], ...]
    file_mpp: tuple[float, float] | None
    file_mpp_source: str

    def __init__(
        self,
        slide_id: str,
        path: Path,
        level_dimensions: tuple[tuple[int, int], ...],
        file_mpp: tuple[float, float] | None,
        file_mpp_source: str,
    ) -> None:
        w0, h0 = level_dimensions[0]
        self.slide_id = slide_id
        self.path = path
        self.level_dimensions = level_dimensions
        self.level_downsamples = tuple((w0 / w, h0 / h) for w, h in level_dimensions)
        self.file_mpp = file_mpp
        self.file_mpp_source = file_mpp_source

    @abstractmethod
    def read_level(self, xy_level: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
        """Read `wh` px of `level` from `xy_level`, in integer px of that level itself.

        Returns:
            uint8 ``(height, width, 3)``, RGB on white.

        Raises:
            SlideError: the region cannot be read or decoded, or there is no such level.
        """

    @abstractmethod
    def read_level_rgb_raw(self, level: int) -> np.ndarray:
        """Read a whole level without compositing: the first three channels as stored.

        Transparent pixels come as the decoder leaves them (black with OpenSlide). Only the bit-compatible
        tissue segmentation wants this.

        Returns:
            uint8 ``(height, width, 3)``.

        Raises:
            SlideError: the level cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file and the cache. Closing twice is harmless; reading afterwards is not allowed."""

    def read_region(self, xy_level0: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
        """Read `wh` px of `level`, placed at `xy_level0` in level-0 px.

        The position is rounded to a whole px of the level with the per-axis downsample, so that every
        backend reads the same grid of stored pixels and none blends neighbours.

        Returns:
            uint8 ``(height, width, 3)``, RGB on white.

        Raises:
            SlideError: the region cannot be read or decoded, or there is no such level.
        """
        self._check_level(level)
        x, y = (round(p / d) for p, d in zip(xy_level0, self.level_downsamples[level], strict=True))
        return self.read_level((x, y), level, wh)

    def read_overview(self, max_px: int) -> tuple[np.ndarray, tuple[float, float]]:
        """Return the whole slide as one picture whose longer side is at most `max_px`.

        It is made from the coarsest level that is still at least `max_px` long (level 0 of a slide
        without one), averaged over f x f px with the smallest whole f that fits, block by block, so that
        memory stays bounded whatever the slide's size.

        Returns:
            uint8 ``(height, width, 3)``, RGB on white, and its per-axis downsample against level 0.

        Raises:
            SlideError: some part of that level cannot be read.
        """
        level = self._overview_level(max_px)
        width, height = self.level_dimensions[level]
        factor = math.ceil(max(width, height) / max_px)
        down_x, down_y = self.level_downsamples[level]
        overview = np.empty((math.ceil(height / factor), math.ceil(width / factor), 3), np.uint8)
        step = max(1, _OVERVIEW_BLOCK_PX // factor) * factor
        for y in range(0, height, step):
            for x in range(0, width, step):
                block = self.read_level((x, y), level, (min(step, width - x), min(step, height - y)))
                small = area_downsample(block, factor)
                top, left = y // factor, x // factor
                overview[top : top + small.shape[0], left : left + small.shape[1]] = small
        return overview, (down_x * factor, down_y * factor)

    def _overview_level(self, max_px: int) -> int:
        if max_px < 1:
            raise ConfigError(f"Reading an overview of {self.path}: max_px must be at least 1, got {max_px}.")
        long_enough = [level for level, wh in enumerate(self.level_dimensions) if max(wh) >= max_px]
        return max(long_enough, key=lambda level: -max(self.level_dimensions[level]), default=0)

    def best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level whose downsample, averaged over both axes, is at most `downsample` (else 0).

        OpenSlide's rule, level by level and without a tolerance.
        """
        coarser = (i for i, pair in enumerate(self.level_downsamples) if sum(pair) / 2 > downsample)
        return max(0, next(coarser, len(self.level_downsamples)) - 1)

    def _check_level(self, level: int) -> None:
        if not 0 <= level < len(self.level_dimensions):
            levels = ", ".join(f"{i}: {w}x{h}" for i, (w, h) in enumerate(self.level_dimensions))
            raise SlideError(f"Reading {self.path}: there is no level {level}; it has {levels}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def area_downsample(block: np.ndarray, factor: int) -> np.ndarray:
    """Average `block`, uint8 ``(height, width, 3)``, over factor x factor px.

    A last partial row or column is averaged over what there is of it, its edge repeated.

    Examples:
        >>> area_downsample(np.full((5, 4, 3), 9, np.uint8), 2).shape
        (3, 2, 3)
    """
    if factor == 1:
        return block
    from wsi_dino.pathology.opencv import cv2

    height, width = block.shape[:2]
    pad_bottom, pad_right = -height % factor, -width % factor
    if pad_bottom or pad_right:
        block = np.pad(block, ((0, pad_bottom), (0, pad_right), (0, 0)), mode="edge")
    size = (block.shape[1] // factor, block.shape[0] // factor)
    return np.asarray(cv2.resize(block, size, interpolation=cv2.INTER_AREA))


def composite_on_white(rgba: np.ndarray) -> np.ndarray:
    """Return uint8 RGB of a not premultiplied uint8 RGBA ``(height, width, 4)`` laid on white.

    Examples:
        >>> composite_on_white(np.array([[[0, 0, 0, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)).tolist()
        [[[255, 255, 255], [10, 20, 30], [204, 204, 204]]]
    """
    alpha = rgba[..., 3:]
    if alpha.size == 0 or alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.uint32)
    mixed = rgba[..., :3] * weight + WHITE * (255 - weight)
    return ((mixed + 127) // 255).astype(np.uint8)


def plausible_mpp(mpp_xy: tuple[float, float], source: str) -> tuple[tuple[float, float] | None, str]:
    """Return `mpp_xy` and `source`, or None and the reason when a microscope cannot have made such pixels.

    Examples:
        >>> plausible_mpp((0.25, 0.25), "openslide.mpp-x")
        ((0.25, 0.25), 'openslide.mpp-x')
        >>> plausible_mpp((352.8, 352.8), "tiff.XResolution")
        (None, 'tiff.XResolution says 352.8 um/px, a print resolution (plausible: 0.02 to 10)')
    """
    low, high = PLAUSIBLE_MPP
    if all(low <= value <= high for value in mpp_xy):
        return mpp_xy, source
    return None, f"{source} says {mpp_xy[0]:.4g} um/px, a print resolution (plausible: {low:g} to {high:g})"


def open_slide(path: Path, *, slide_id: str | None = None, backend: str = "auto") -> Slide:
    """Open a slide.

    Args:
        path: a slide file, a plain image, or a folder that holds one DICOM series.
        slide_id: its id; by default the file name without its extension.
        backend: ``"openslide"`` (all that OpenSlide reads), ``"tiled-tiff"`` (tiled TIFF and SVS, the same
            pixels, several times as fast), ``"image"`` (one level: JPEG, PNG, TIFF, BMP), or ``"auto"``,
            which takes the first that can: tiled-tiff, openslide, image.

    Raises:
        SlideError: the file is missing, unreadable, truncated or not an image.
        ConfigError: there is no such backend.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "S1.png"
        >>> Image.new("RGB", (300, 200), "pink").save(path)
        >>> with open_slide(path) as slide:
        ...     slide.slide_id, slide.backend, slide.level_dimensions, slide.file_mpp
        ('S1', 'image', ((300, 200),), None)
    """
    from wsi_dino.pathology.discovery import slide_id_of

    if backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ConfigError(
            f"Opening {path}: unknown backend {backend!r}.{nearest_name(backend, BACKENDS)} Known: {known}."
        )
    path = Path(path)
    name = slide_id if slide_id is not None else slide_id_of(path)
    _check_readable(path)
    return _open_with(_slide_file(path), path, name, backend)


def _open_with(file: Path, path: Path, slide_id: str, backend: str) -> Slide:
    from wsi_dino.pathology.image_slide import ImageSlide
    from wsi_dino.pathology.openslide_slide import OpenSlideSlide, detected_vendor
    from wsi_dino.pathology.tiled_tiff_slide import TiledTiffSlide, UnsupportedTiffError

    if backend == "image" or (backend == "auto" and detected_vendor(file) is None):
        _check_is_plain_image(file)
        return ImageSlide(path, slide_id)
    if backend in ("auto", "tiled-tiff"):
        try:
            return TiledTiffSlide(file, slide_id)
        except UnsupportedTiffError:
            if backend == "tiled-tiff":
                raise
    return OpenSlideSlide(file, slide_id, path=path)


def _check_is_plain_image(file: Path) -> None:
    """Refuse what is a damaged slide rather than a picture, though its first level might still decode."""
    from wsi_dino.pathology.discovery import DICOM_SUFFIXES, SLIDE_SUFFIXES
    from wsi_dino.pathology.tiff_header import has_all_directories, is_tiff

    suffix = file.suffix.lower()
    if suffix in (*SLIDE_SUFFIXES, *DICOM_SUFFIXES) and suffix not in (".tif", ".tiff"):
        raise SlideError(f"Opening {file}: OpenSlide finds no {suffix} slide in it: damaged, truncated or not a slide.")
    if is_tiff(file) and not has_all_directories(file):
        raise SlideError(f"Opening {file}: a TIFF whose end is missing (truncated). Copy it again.")


def _slide_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(item for item in path.iterdir() if item.suffix.lower() in (".dcm", ".dicom"))
    if not files:
        raise SlideError(
            f"Opening {path}: a folder is a slide only when it holds a DICOM series (.dcm); this has none."
        )
    return files[0]


def _check_readable(path: Path) -> None:
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            return
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except FileNotFoundError as error:
        raise SlideError(f"Opening {path}: there is no such file.") from error
    except PermissionError as error:
        raise SlideError(f"Opening {path}: no permission to read it. `chmod a+r` it, or ask its owner.") from error
    except OSError as error:
        raise SlideError(f"Opening {path}: {error.strerror or error}.") from error
    if empty:
        raise SlideError(f"Opening {path}: the file is empty (0 bytes). Copy it again.")
