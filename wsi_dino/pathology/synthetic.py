"""Drawn slides whose truth is known: H&E-like tissue, and pyramids as microscopes write them.

For the demonstration, tests and benchmarks. Nothing here stands for real tissue.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.opencv import cv2
from wsi_dino.pathology.slide import area_downsample
from wsi_dino.provenance import write_atomically

Painter = Callable[[int, int, int, int], np.ndarray]
"""Paints the region (x, y, width, height), in level-0 px, as uint8 ``(height, width, 3)``."""

REDUCED_BY = 16
"""Level-0 px along one side of a px of the truth masks."""

_TEXTURE_PX = 1024
_BACKGROUND = (243, 242, 244)
_PEN = (40, 60, 150)


def write_pyramid(
    path: Path,
    image: np.ndarray | Painter,
    *,
    wh: tuple[int, int] | None = None,
    mpp: float | None = 0.5,
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
        mpp: um/px at level 0, or None to leave it out. 352.8 makes what a print program writes (72 dpi).
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
    _check_levels(downsamples, tile_px)
    with (
        write_atomically(path) as temporary,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".pyramid-") as scratch,
    ):
        with tifffile.TiffWriter(temporary, bigtiff=full_wh[0] * full_wh[1] > 2**30) as tiff:
            for level, downsample in enumerate(downsamples):
                level_wh = _level_wh(full_wh, downsample, sizes)
                following = downsamples[level + 1] if level + 1 < len(downsamples) else None
                kept = _Reduction(scratch, level, full_wh, downsample, following, sizes, channels)
                tiles = _tiles(paint, level_wh, tile_px, channels, kept)
                options = _page_options(level, downsample, mpp, compression, quality, channels)
                text = _description(flavour, full_wh, level_wh, tile_px, mpp, quality)
                shape = (level_wh[1], level_wh[0], channels)
                tiff.write(tiles, shape=shape, dtype=np.uint8, tile=(tile_px, tile_px), description=text, **options)
                paint = kept.paint


class _Reduction:
    """Collects the next level while the present one is being painted, in a file and not in memory."""

    def __init__(
        self,
        scratch: str,
        level: int,
        full_wh: tuple[int, int],
        downsample: int,
        following: int | None,
        sizes: str,
        channels: int,
    ) -> None:
        self.factor = 0 if following is None else following // downsample
        self.pixels: np.ndarray | None = None
        if following is not None:
            w, h = _level_wh(full_wh, following, sizes)
            self.pixels = np.memmap(Path(scratch) / f"{level}.raw", np.uint8, "w+", shape=(h, w, channels))

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
    steps = [b // a for a, b in zip(downsamples, downsamples[1:], strict=False)]
    exact = all(a * s == b and s > 1 for a, b, s in zip(downsamples, downsamples[1:], steps, strict=False))
    if not downsamples or downsamples[0] != 1 or not exact or tile_px % 16 or any(tile_px % s for s in steps):
        raise ConfigError(
            f"Writing a pyramid: downsamples {tuple(downsamples)} must start at 1 and each be a multiple of the one "
            f"before, and tile_px {tile_px} a multiple of 16 and of each step."
        )


def _level_wh(full_wh: tuple[int, int], downsample: int, sizes: str) -> tuple[int, int]:
    w, h = (-(-side // downsample) if sizes == "ceil" else max(1, side // downsample) for side in full_wh)
    return w, h


def _page_options(
    level: int, downsample: int, mpp: float | None, compression: str, quality: int, channels: int
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
    if mpp is not None:
        options |= {"resolution": (1e4 / (mpp * downsample),) * 2, "resolutionunit": "CENTIMETER"}
    return options


def _description(
    flavour: str, full_wh: tuple[int, int], level_wh: tuple[int, int], tile_px: int, mpp: float | None, quality: int
) -> str | None:
    if flavour != "svs":
        return None
    (w0, h0), (w, h) = full_wh, level_wh
    size = f"{w0}x{h0} [0,0 {w0}x{h0}] ({tile_px}x{tile_px})"
    shrunk = "" if (w, h) == (w0, h0) else f" -> {w}x{h}"
    resolution = "" if mpp is None else f"|AppMag = {round(10 / mpp)}|MPP = {mpp:.4f}"
    return f"Aperio Image Library v11.2.1 \r\n{size}{shrunk} JPEG/RGB Q={quality}{resolution}"


def draw_tissue(
    rng: np.random.Generator,
    wh: tuple[int, int],
    *,
    tumour: bool,
    white_background: bool = False,
    pen: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one H&E-like section.

    Returns:
        uint8 RGB ``(height, width, 3)`` and the tumour's bool mask at 1 / `REDUCED_BY` of its size.

    Examples:
        >>> image, truth = draw_tissue(np.random.default_rng(0), (640, 480), tumour=True)
        >>> image.shape, truth.shape
        ((480, 640, 3), (30, 40))
    """
    painter = TissuePainter(rng, wh, tumour=tumour, white_background=white_background, pen=pen)
    return painter(0, 0, *wh), painter.tumour_mask


class TissuePainter:
    """A section that is painted region by region, so that its size costs no memory.

    Calling it with (x, y, width, height) in level-0 px gives uint8 RGB ``(height, width, 3)``.

    Attributes:
        wh: size in px.
        tissue_mask: bool, at 1 / `REDUCED_BY`: where tissue is (holes are not).
        tumour_mask: bool, at 1 / `REDUCED_BY`: where tumour is, a part of the tissue.
        pen_mask: bool, at 1 / `REDUCED_BY`: where ink is.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        wh: tuple[int, int],
        *,
        tumour: bool,
        white_background: bool = False,
        pen: bool = False,
    ) -> None:
        self.wh = wh
        self._background = np.full(3, 255, np.uint8) if white_background else np.array(_BACKGROUND, np.uint8)
        shape = (-(-wh[1] // REDUCED_BY), -(-wh[0] // REDUCED_BY))
        self._tissue = _tissue_field(rng, shape)
        self._tumour = _tumour_field(rng, self._tissue) if tumour else np.zeros(shape, np.float32)
        self._pen = _pen_field(rng, shape) if pen else np.zeros(shape, np.float32)
        self._benign_texture = _texture(rng, tumour=False)
        self._tumour_texture = _texture(rng, tumour=True)
        self.tissue_mask = self._tissue > 0.5
        self.tumour_mask = (self._tumour > 0.5) & self.tissue_mask
        self.pen_mask = self._pen > 0.5

    def __call__(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        tissue = _enlarged(self._tissue, x, y, w, h)
        out = np.empty((h, w, 3), np.uint8)
        out[:] = self._background
        if tissue.max() > 0:
            cells = _wrapped(self._benign_texture, x, y, w, h)
            tumour = _enlarged(self._tumour, x, y, w, h)
            if tumour.max() > 0:
                cells = cv2.blendLinear(_wrapped(self._tumour_texture, x, y, w, h), cells, tumour, 1 - tumour)
            out = cv2.blendLinear(cells, out, tissue, 1 - tissue)
        pen = _enlarged(self._pen, x, y, w, h) if self._pen.any() else None
        if pen is not None and pen.max() > 0:
            out = cv2.blendLinear(np.full_like(out, _PEN), out, 0.85 * pen, 1 - 0.85 * pen)
        return out


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: float) -> np.ndarray:
    """Return smooth float32 noise in -1..1 with about `cells` bumps along the longer side."""
    scale = max(shape) / cells
    coarse = rng.standard_normal((int(shape[0] / scale) + 3, int(shape[1] / scale) + 3)).astype(np.float32)
    large = cv2.resize(coarse, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return np.tanh(large[: shape[0], : shape[1]])


def _unit_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return 2 * (x + 0.5) / shape[1] - 1, 2 * (y + 0.5) / shape[0] - 1


def _smooth_step(field: np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 + field / width, 0, 1).astype(np.float32)


def _tissue_field(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    x, y = _unit_grid(shape)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    outline = (
        0.72 - np.hypot(u, v / rng.uniform(0.8, 1.0)) + 0.16 * _noise(rng, shape, 6) + 0.05 * _noise(rng, shape, 24)
    )
    holes = _noise(rng, shape, 9) - 0.82
    return _smooth_step(np.minimum(outline, -holes), 0.02)


def _tumour_field(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(tissue > 0.99)
    at = int(rng.integers(len(rows))) if len(rows) else 0
    shape = (tissue.shape[0], tissue.shape[1])
    centre = (rows[at], columns[at]) if len(rows) else (shape[0] // 2, shape[1] // 2)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    radius = 0.24 * min(shape) * rng.uniform(0.9, 1.2)
    blob = 1 - np.hypot(x - centre[1], y - centre[0]) / radius + 0.25 * _noise(rng, shape, 10)
    return _smooth_step(blob, 0.15)


def _pen_field(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    t = np.linspace(0, 1, 40)
    x = (0.05 + 0.9 * t) * shape[1]
    y = (rng.uniform(0.05, 0.12) + 0.03 * np.sin(2 * np.pi * t * rng.uniform(1, 2))) * shape[0]
    points = np.stack([x, y], axis=1).round().astype(np.int32)
    cv2.polylines(canvas, [points], False, 255, max(2, shape[0] // 40))
    return cv2.GaussianBlur(canvas, (3, 3), 0).astype(np.float32) / 255


def _texture(rng: np.random.Generator, *, tumour: bool) -> np.ndarray:
    """Return a uint8 RGB texture of cells that can be laid side by side without a seam."""
    size = _TEXTURE_PX
    ground = (np.array([205, 150, 200]) if tumour else np.array([232, 170, 200])).astype(np.float32)
    fibres = _wrapping_noise(rng, (3, 1) if tumour else (14, 2))
    clouds = _wrapping_noise(rng, (40, 40))
    canvas = ground + 16 * fibres[..., None] * np.array([0.5, 1, 0.6]) + 9 * clouds[..., None]
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)
    _draw_nuclei(rng, canvas, tumour=tumour)
    canvas = cv2.GaussianBlur(np.pad(canvas, ((8, 8), (8, 8), (0, 0)), mode="wrap"), (0, 0), 0.8)[8:-8, 8:-8]
    grain = rng.normal(0, 3, (size, size, 1))
    return np.clip(canvas + grain, 0, 255).astype(np.uint8)


def _wrapping_noise(rng: np.random.Generator, sigma: tuple[float, float]) -> np.ndarray:
    pad = int(4 * max(sigma))
    white = np.pad(rng.standard_normal((_TEXTURE_PX, _TEXTURE_PX)).astype(np.float32), pad, mode="wrap")
    smooth = cv2.GaussianBlur(white, (0, 0), sigmaX=sigma[0], sigmaY=sigma[1])[pad:-pad, pad:-pad]
    return smooth / smooth.std()


def _draw_nuclei(rng: np.random.Generator, canvas: np.ndarray, *, tumour: bool) -> None:
    count, radius, spread = (3600, 7.0, 0.35) if tumour else (900, 4.2, 0.15)
    colour = np.array([92, 55, 135]) if tumour else np.array([118, 82, 160])
    shift = 4
    for x, y in rng.uniform(0, _TEXTURE_PX, (count, 2)):
        long = radius * np.exp(rng.normal(0, spread))
        short = long * (rng.uniform(0.6, 1.0) if tumour else rng.uniform(0.3, 0.75))
        angle = rng.uniform(0, 180) if tumour else rng.normal(0, 25)
        shade = np.clip(colour + rng.normal(0, 12, 3), 0, 255).tolist()
        for dx in _wraps(x, long):
            for dy in _wraps(y, long):
                centre = (int((x + dx) * 2**shift), int((y + dy) * 2**shift))
                axes = (int(long * 2**shift), int(short * 2**shift))
                cv2.ellipse(canvas, centre, axes, angle, 0, 360, shade, -1, cv2.LINE_AA, shift)


def _wraps(position: float, reach: float) -> list[int]:
    before = [_TEXTURE_PX] if position < reach else []
    after = [-_TEXTURE_PX] if position > _TEXTURE_PX - reach else []
    return [0, *before, *after]


def _wrapped(texture: np.ndarray, x: int, y: int, w: int, h: int) -> np.ndarray:
    rows = np.arange(y, y + h) % _TEXTURE_PX
    columns = np.arange(x, x + w) % _TEXTURE_PX
    return texture[rows][:, columns]


def _enlarged(field: np.ndarray, x: int, y: int, w: int, h: int) -> np.ndarray:
    """Return float32 `field` (at 1 / `REDUCED_BY`) interpolated to the px of a region."""
    scale = 1 / REDUCED_BY
    matrix = np.array([[scale, 0, (x + 0.5) * scale - 0.5], [0, scale, (y + 0.5) * scale - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(field, matrix, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE)
