"""Writing tiled pyramids as microscopes do, region by region: overlays for viewers, drawn slides for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.slide import area_downsample
from wsi_dino.provenance import write_atomically

Painter = Callable[[int, int, int, int], np.ndarray]
"""Paints the region (x, y, width, height), in level-0 px, as uint8 ``(height, width, 3)``."""


def write_pyramid(
    path: Path,
    image: np.ndarray | Painter,
    *,
    wh: tuple[int, int] | None = None,
    mpp: float | tuple[float, float] | None = 0.5,
    tile_px: int = 256,
    downsamples: Sequence[int] = (1, 4, 16),
    compression: Literal["jpeg", "none", "deflate", "jpeg2000"] = "jpeg",
    quality: int = 85,
    flavour: Literal["tiff", "svs"] = "tiff",
    sizes: Literal["floor", "ceil"] = "ceil",
) -> None:
    """Write a pyramidal tiled TIFF that OpenSlide opens, in bounded memory.

    Args:
        path: file to write, atomically.
        image: uint8 ``(height, width, 3)`` (4 channels: not premultiplied alpha, not for JPEG), or a painter.
        wh: size of the slide in px; needed with a painter.
        mpp: um/px at level 0, one or (x, y), or None to leave it out. 352.8 makes what a print program writes (72 dpi).
        tile_px: side of the stored tiles; a multiple of 16 and of the step between two levels.
        downsamples: nominal downsample of each level, rising, the first 1, each a multiple of the one before.
        compression: of the tiles; ``jpeg2000`` is written as Aperio does (RGB).
        quality: of JPEG (1..100).
        flavour: ``"svs"`` adds the description by which an Aperio file is known.
        sizes: how a level's size is rounded. With ``"ceil"`` 39,999 px at nominal 4 give 10,000 px, so that
            the true downsample is 3.9999; with ``"floor"`` 9,999 px and 4.0003.

    Raises:
        ConfigError: sizes, levels and tiles do not fit together.
    """
    import tifffile

    paint, full_wh, channels = _as_painter(image, wh)
    mpp_xy = (mpp, mpp) if isinstance(mpp, float | int) else mpp
    _check_levels(downsamples, tile_px)
    with (
        write_atomically(path) as temporary,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".pyramid-") as scratch,
        tifffile.TiffWriter(temporary, bigtiff=full_wh[0] * full_wh[1] > 2**30) as tiff,
    ):
        for level, downsample in enumerate(downsamples):
            level_wh = _level_wh(full_wh, downsample, sizes)
            following = downsamples[level + 1] if level + 1 < len(downsamples) else 0
            next_wh = _level_wh(full_wh, following or downsample, sizes)
            kept = _Reduction(Path(scratch) / f"{level}.raw", following // downsample, next_wh, channels)
            tiles = _tiles(paint, level_wh, tile_px, channels, kept)
            options = _page_options(level, mpp_xy, downsample, compression, quality, channels)
            text = _description(full_wh, level_wh, tile_px, mpp_xy, quality) if flavour == "svs" else None
            shape = (level_wh[1], level_wh[0], channels)
            tiff.write(tiles, shape=shape, dtype=np.uint8, tile=(tile_px, tile_px), description=text, **options)
            paint = kept.paint


class _Reduction:
    """Collects the next level while the present one is being painted, in a file and not in memory."""

    def __init__(self, file: Path, factor: int, wh: tuple[int, int], channels: int) -> None:
        self.factor = factor
        shape = (wh[1], wh[0], channels)
        self.pixels: np.ndarray | None = np.memmap(file, np.uint8, "w+", shape=shape) if factor else None

    def add(self, tile: np.ndarray, x: int, y: int) -> None:
        """Take `tile`, the part inside the slide, at (x, y) of the present level."""
        if self.pixels is None:
            return
        small = area_downsample(tile, self.factor)
        left, top = x // self.factor, y // self.factor
        target = self.pixels[top : top + small.shape[0], left : left + small.shape[1]]
        target[:] = small[: target.shape[0], : target.shape[1]]

    def paint(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        """Return a region of what was collected."""
        if self.pixels is None:
            raise ConfigError("Writing a pyramid: there is no further level.")
        return self.pixels[y : y + h, x : x + w]


def _tiles(paint: Painter, wh: tuple[int, int], tile_px: int, channels: int, kept: _Reduction) -> Iterator[np.ndarray]:
    for y in range(0, wh[1], tile_px):
        for x in range(0, wh[0], tile_px):
            region = paint(x, y, min(tile_px, wh[0] - x), min(tile_px, wh[1] - y))
            kept.add(region, x, y)
            yield _padded(region, tile_px)


def _padded(region: np.ndarray, tile_px: int) -> np.ndarray:
    missing = (tile_px - region.shape[0], tile_px - region.shape[1])
    if missing == (0, 0):
        return np.ascontiguousarray(region)
    return np.pad(region, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _as_painter(image: np.ndarray | Painter, wh: tuple[int, int] | None) -> tuple[Painter, tuple[int, int], int]:
    if isinstance(image, np.ndarray):
        pixels = image
        return lambda x, y, w, h: pixels[y : y + h, x : x + w], (pixels.shape[1], pixels.shape[0]), pixels.shape[2]
    if wh is None:
        raise ConfigError("Writing a pyramid: a painter needs wh=(width, height).")
    return image, wh, 3


def _check_levels(downsamples: Sequence[int], tile_px: int) -> None:
    steps = [finer and (coarser % finer == 0) and coarser // finer for finer, coarser in pairwise(downsamples)]
    if not downsamples or downsamples[0] != 1 or tile_px % 16 or any(step < 2 or tile_px % step for step in steps):
        raise ConfigError(
            f"Writing a pyramid: downsamples {tuple(downsamples)} must start at 1 and each be a multiple of the one "
            f"before, and tile_px {tile_px} a multiple of 16 and of each step."
        )


def _level_wh(full_wh: tuple[int, int], downsample: int, sizes: str) -> tuple[int, int]:
    w, h = (-(-side // downsample) if sizes == "ceil" else max(1, side // downsample) for side in full_wh)
    return w, h


def _page_options(
    level: int, mpp_xy: tuple[float, float] | None, downsample: int, compression: str, quality: int, channels: int
) -> dict[str, Any]:
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    if level:
        options["subfiletype"] = 1
    if compression == "jpeg":
        options |= {"compression": "jpeg", "compressionargs": {"level": quality}}
    elif compression == "jpeg2000":
        options |= {"compression": 33005, "compressionargs": {"level": 40, "codecformat": "J2K"}}
    elif compression == "deflate":
        options["compression"] = "zlib"
    if mpp_xy is not None:
        per_cm = tuple(1e4 / (mpp * downsample) for mpp in mpp_xy)
        options |= {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
    return options


def _description(
    full_wh: tuple[int, int], level_wh: tuple[int, int], tile_px: int, mpp_xy: tuple[float, float] | None, quality: int
) -> str:
    (w0, h0), (w, h) = full_wh, level_wh
    size = f"{w0}x{h0} [0,0 {w0}x{h0}] ({tile_px}x{tile_px})"
    shrunk = "" if (w, h) == (w0, h0) else f" -> {w}x{h}"
    resolution = "" if mpp_xy is None else f"|AppMag = {round(10 / mpp_xy[0])}|MPP = {mpp_xy[0]:.4f}"
    return f"Aperio Image Library v11.2.1 \r\n{size}{shrunk} JPEG/RGB Q={quality}{resolution}"
