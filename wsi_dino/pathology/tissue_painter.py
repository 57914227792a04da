"""H&E-like sections drawn from a seed, whose truth is known. Nothing here stands for real tissue."""

from __future__ import annotations

import numpy as np

from wsi_dino.pathology.opencv import cv2

REDUCED_BY = 16
"""Level-0 px along one side of a px of the truth masks."""

_TEXTURE_PX = 1024
_BLOCK_PX = 512
_BACKGROUND = (243, 242, 244)
_INK = (40, 60, 150)
_SUBPIXEL_BITS = 4


def draw_tissue(
    rng: np.random.Generator,
    wh: tuple[int, int],
    *,
    tumour: bool,
    white_background: bool = False,
    pen: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one H&E-like section, looking its best at about 0.5 um/px.

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
    """A section that is painted region by region, so that its size costs little memory.

    Pink fibrous stroma with spindle nuclei and glands; tumour is crowded with large, dark, uneven nuclei.
    Calling it with (x, y, width, height) in level-0 px gives uint8 RGB ``(height, width, 3)``; it may be
    called from several threads.

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
        self._background = (255, 255, 255) if white_background else _BACKGROUND
        shape = (-(-wh[1] // REDUCED_BY), -(-wh[0] // REDUCED_BY))
        nothing = np.zeros(shape, np.float32)
        self._tissue = _tissue_field(rng, shape)
        self._tumour = _tumour_field(rng, self._tissue) if tumour else nothing
        self._pen = _pen_field(rng, shape) if pen else nothing
        self._benign_texture = _benign_texture(rng)
        self._tumour_texture = _tumour_texture(rng) if tumour else self._benign_texture
        self.tissue_mask = self._tissue > 0.5
        self.tumour_mask = (self._tumour > 0.5) & self.tissue_mask
        self.pen_mask = self._pen > 0.5

    def __call__(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        out = np.empty((h, w, 3), np.uint8)
        for top in range(0, h, _BLOCK_PX):
            for left in range(0, w, _BLOCK_PX):
                block = out[top : top + _BLOCK_PX, left : left + _BLOCK_PX]
                block[:] = self._block(x + left, y + top, block.shape[1], block.shape[0])
        return out

    def _block(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        ground = np.empty((h, w, 3), np.uint8)
        ground[:] = self._background
        tissue = _enlarged(self._tissue, x, y, w, h)
        if tissue.max() > 0:
            cells = _wrapped(self._benign_texture, x, y, w, h)
            tumour = _enlarged(self._tumour, x, y, w, h)
            if tumour.max() > 0:
                cells = _blended(_wrapped(self._tumour_texture, x, y, w, h), cells, tumour)
            ground = _blended(cells, ground, tissue)
        pen = 0.85 * _enlarged(self._pen, x, y, w, h)
        return _blended(np.full_like(ground, _INK), ground, pen) if pen.max() > 0 else ground


def _blended(over: np.ndarray, under: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return over if weight.min() >= 1 else np.asarray(cv2.blendLinear(over, under, weight, 1 - weight))


def _enlarged(field: np.ndarray, x: int, y: int, w: int, h: int) -> np.ndarray:
    """Return float32 `field` (at 1 / `REDUCED_BY`) interpolated to the px of a region, its edges sharpened."""
    scale = 1 / REDUCED_BY
    x0, y0 = x // REDUCED_BY, y // REDUCED_BY
    x1, y1 = (x + w) // REDUCED_BY + 2, (y + h) // REDUCED_BY + 2
    part = field[max(y0 - 1, 0) : y1, max(x0 - 1, 0) : x1]
    if not part.any():
        return np.zeros((h, w), np.float32)
    if part.min() >= 1:
        return np.ones((h, w), np.float32)
    matrix = np.array([[scale, 0, (x + 0.5) * scale - 0.5], [0, scale, (y + 0.5) * scale - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    smooth = cv2.warpAffine(field, matrix, (w, h), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(3 * smooth - 1, 0, 1)


def _wrapped(texture: np.ndarray, x: int, y: int, w: int, h: int) -> np.ndarray:
    rows = np.arange(y, y + h) % _TEXTURE_PX
    columns = np.arange(x, x + w) % _TEXTURE_PX
    return texture.take(rows, axis=0).take(columns, axis=1)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: float) -> np.ndarray:
    """Return smooth float32 noise in -1..1 with about `cells` bumps along the longer side."""
    scale = max(shape) / cells
    coarse = rng.standard_normal((int(shape[0] / scale) + 3, int(shape[1] / scale) + 3)).astype(np.float32)
    large = cv2.resize(coarse, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return np.tanh(large[: shape[0], : shape[1]])


def _ramp(field: np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 + field / width, 0, 1).astype(np.float32)


def _tissue_field(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x, y = 2 * (x + 0.5) / shape[1] - 1, 2 * (y + 0.5) / shape[0] - 1
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    disc = 0.72 - np.hypot(u, v / rng.uniform(0.8, 1.0))
    outline = disc + 0.16 * _noise(rng, shape, 6) + 0.05 * _noise(rng, shape, 24)
    holes = _noise(rng, shape, 9) - 0.82
    return _ramp(np.minimum(outline, -holes), 0.02)


def _tumour_field(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    shape = (tissue.shape[0], tissue.shape[1])
    rows, columns = np.nonzero(tissue > 0.99)
    at = int(rng.integers(max(len(rows), 1)))
    centre = (rows[at], columns[at]) if len(rows) else (shape[0] // 2, shape[1] // 2)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    radius = 0.24 * min(shape) * rng.uniform(0.9, 1.2)
    blob = 1 - np.hypot(x - centre[1], y - centre[0]) / radius + 0.25 * _noise(rng, shape, 10)
    return _ramp(blob, 0.1)


def _pen_field(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    t = np.linspace(0, 1, 40)
    x = (0.05 + 0.9 * t) * shape[1]
    y = (rng.uniform(0.05, 0.12) + 0.03 * np.sin(2 * np.pi * t * rng.uniform(1, 2))) * shape[0]
    points = np.stack([x, y], axis=1).round().astype(np.int32)
    cv2.polylines(canvas, [points], False, 255, max(2, shape[0] // 40))
    return cv2.GaussianBlur(canvas, (3, 3), 0).astype(np.float32) / 255


def _benign_texture(rng: np.random.Generator) -> np.ndarray:
    canvas = _ground(rng, (232, 168, 200), fibre_px=(12, 2), contrast=15)
    angles = rng.normal(0, 25, 800)
    _draw_nuclei(rng, canvas, rng.uniform(0, _TEXTURE_PX, (800, 2)), angles, radius_px=4.2, uneven=False)
    for centre in rng.uniform(0, _TEXTURE_PX, (7, 2)):
        _draw_gland(rng, canvas, centre)
    return _finished(rng, canvas)


def _tumour_texture(rng: np.random.Generator) -> np.ndarray:
    canvas = _ground(rng, (206, 152, 200), fibre_px=(3, 2), contrast=10)
    angles = rng.uniform(0, 180, 3600)
    _draw_nuclei(rng, canvas, rng.uniform(0, _TEXTURE_PX, (3600, 2)), angles, radius_px=6.8, uneven=True)
    return _finished(rng, canvas)


def _ground(
    rng: np.random.Generator, colour: tuple[int, int, int], *, fibre_px: tuple[float, float], contrast: float
) -> np.ndarray:
    """Return wavy fibres in `colour`, uint8, that can be laid side by side without a seam."""
    fibres = _wrapping_noise(rng, fibre_px)
    bend = cv2.resize(_wrapping_noise(rng, (6, 6), size=128), (_TEXTURE_PX, _TEXTURE_PX))
    y, x = np.mgrid[:_TEXTURE_PX, :_TEXTURE_PX].astype(np.float32)
    fibres = cv2.remap(fibres, x + 10 * bend, y + 22 * bend, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    tint = np.array([0.5, 1.0, 0.6], np.float32)
    canvas = np.array(colour, np.float32) + (contrast * fibres + 7 * bend)[..., None] * tint
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _wrapping_noise(rng: np.random.Generator, sigma: tuple[float, float], size: int = _TEXTURE_PX) -> np.ndarray:
    pad = int(4 * max(sigma))
    white = np.pad(rng.standard_normal((size, size), np.float32), pad, mode="wrap")
    smooth = cv2.GaussianBlur(white, (0, 0), sigmaX=sigma[0], sigmaY=sigma[1])[pad:-pad, pad:-pad]
    return smooth / smooth.std()


def _draw_gland(rng: np.random.Generator, canvas: np.ndarray, centre: np.ndarray) -> None:
    lumen, wall = rng.uniform(18, 38), rng.uniform(16, 22)
    squeeze, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    degrees = float(np.degrees(turn))
    for radius, colour in ((lumen + wall, (204, 146, 192)), (lumen, (240, 234, 240))):
        _draw_ellipse(canvas, centre, (radius, radius * squeeze), degrees, colour)
    around = np.arange(0, 2 * np.pi, 11 / (lumen + wall))
    u = (lumen + 0.7 * wall) * np.cos(around)
    v = (lumen + 0.7 * wall) * squeeze * np.sin(around)
    points = centre + np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], axis=1)
    _draw_nuclei(rng, canvas, points % _TEXTURE_PX, np.degrees(around + turn), radius_px=5.0, uneven=False)


def _draw_nuclei(
    rng: np.random.Generator,
    canvas: np.ndarray,
    centres: np.ndarray,
    angles: np.ndarray,
    *,
    radius_px: float,
    uneven: bool,
) -> None:
    colour = np.array([86, 50, 132]) if uneven else np.array([112, 74, 156])
    spread, low, high = (0.35, 0.6, 1.0) if uneven else (0.15, 0.35, 0.75)
    n = len(centres)
    long = radius_px * np.exp(rng.normal(0, spread, n))
    short = long * rng.uniform(low, high, n)
    shades = np.clip(colour + rng.normal(0, 14, (n, 1)) + rng.normal(0, 4, (n, 3)), 0, 255)
    for centre, a, b, angle, shade in zip(centres, long, short, angles, shades, strict=True):
        _draw_ellipse(canvas, centre, (float(a), float(b)), float(angle), tuple(shade.tolist()))


def _draw_ellipse(
    canvas: np.ndarray, centre: np.ndarray, radii: tuple[float, float], angle: float, colour: tuple[float, ...]
) -> None:
    """Fill an ellipse, and what of it leaves the texture on one side enters on the other."""
    one = 2**_SUBPIXEL_BITS
    axes = (round(radii[0] * one), round(radii[1] * one))
    for x in _wraps(float(centre[0]), max(radii)):
        for y in _wraps(float(centre[1]), max(radii)):
            at = (round(x * one), round(y * one))
            cv2.ellipse(canvas, at, axes, angle, 0, 360, colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)


def _wraps(position: float, reach: float) -> list[float]:
    before = [position + _TEXTURE_PX] if position < reach else []
    after = [position - _TEXTURE_PX] if position > _TEXTURE_PX - reach else []
    return [position, *before, *after]


def _finished(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Blur as a lens does, and add grain."""
    soft = cv2.GaussianBlur(np.pad(canvas, ((8, 8), (8, 8), (0, 0)), mode="wrap"), (0, 0), 0.8)[8:-8, 8:-8]
    grain = cv2.GaussianBlur(rng.standard_normal((_TEXTURE_PX, _TEXTURE_PX), np.float32), (0, 0), 0.7) * 9
    return np.clip(soft + grain[..., None], 0, 255).astype(np.uint8)
