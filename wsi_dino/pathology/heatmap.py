"""Values of tiles painted back onto their slide: an attention heatmap with its legend."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from wsi_dino.pathology.slide import open_slide
from wsi_dino.provenance import write_atomically

SCALING = "percentile rank within the slide"
_COLOUR_MAP = "turbo"
_ALPHA = 0.55
_LEGEND_HEIGHT_PX = 56
_MIN_WIDTH_PX = 420
_MARGIN_PX = 12


def percentile_ranks(values: np.ndarray) -> np.ndarray:
    """Return for each value the share of the other values that lie below it; ties share their mean rank.

    Raw attention weights are a handful of spikes over a flat floor; ranks show the order of all tiles.

    Args:
        values: float ``(n,)``, finite.

    Returns:
        float64 ``(n,)`` in 0..1; a single value, or equal ones, get 0.5.

    Examples:
        >>> percentile_ranks(np.array([0.1, 0.7, 0.1, 0.9])).round(3).tolist()
        [0.167, 0.667, 0.167, 1.0]
    """
    n = len(values)
    if n < 2:
        return np.full(n, 0.5)
    order = np.sort(values)
    below = np.searchsorted(order, values, "left")
    up_to = np.searchsorted(order, values, "right")
    return (below + up_to - 1) / 2 / (n - 1)


def paint_tiles(
    values: np.ndarray, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int], overview_wh: tuple[int, int],
    downsample_xy: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Paint each tile's value over its footprint on an overview; where tiles overlap, their mean.

    Args:
        values: float ``(n,)``.
        xy_level0: int ``(n, 2)``, top-left x, y in level-0 px.
        tile_wh_level0: width and height of a footprint in level-0 px.
        overview_wh: width and height of the overview in px.
        downsample_xy: level-0 px per px of the overview, for each axis.

    Returns:
        float64 ``(height, width)`` values and bool ``(height, width)``, True where a tile lies.
    """
    width, height = overview_wh
    total, count = np.zeros((height, width)), np.zeros((height, width))
    scale = np.asarray(downsample_xy, float)
    low = np.rint(xy_level0 / scale).astype(np.int64)
    high = np.rint((xy_level0 + np.asarray(tile_wh_level0)) / scale).astype(np.int64)
    high = np.maximum(high, low + 1)  # a tile smaller than an overview px still shows
    for value, (x0, y0), (x1, y1) in zip(values, np.maximum(low, 0), high, strict=True):
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    return total / np.maximum(count, 1), count > 0


def attention_overlay(
    attention: np.ndarray, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int], overview_wh: tuple[int, int],
    downsample_xy: tuple[float, float],
) -> np.ndarray:  # fmt: skip
    """Return the coloured attention of a slide, to be laid over its overview.

    Args:
        attention: float ``(n,)``, raw or after softmax: only the order counts (`SCALING`).
        xy_level0: int ``(n, 2)``, top-left x, y in level-0 px.
        tile_wh_level0: width and height of a footprint in level-0 px.
        overview_wh: width and height of the overview in px.
        downsample_xy: level-0 px per px of the overview, for each axis.

    Returns:
        uint8 ``(height, width, 4)`` RGBA, fully transparent where no tile lies.
    """
    ranks, covered = paint_tiles(percentile_ranks(attention), xy_level0, tile_wh_level0, overview_wh, downsample_xy)
    overlay = np.zeros((*ranks.shape, 4), np.uint8)
    overlay[..., :3] = _colours()[np.rint(ranks * 255).astype(int)]
    overlay[..., 3] = np.where(covered, round(255 * _ALPHA), 0)
    return overlay


@lru_cache(maxsize=1)
def _colours() -> np.ndarray:
    from matplotlib import colormaps

    return np.rint(colormaps[_COLOUR_MAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def blend(overview: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """Lay a uint8 RGBA overlay over a uint8 RGB overview of the same size."""
    alpha = overlay[..., 3:] / 255.0
    return np.rint(overview * (1 - alpha) + overlay[..., :3] * alpha).astype(np.uint8)


def attention_picture(
    slide_path: Path, attention: np.ndarray, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int], max_px: int = 1600
) -> np.ndarray:
    """Read the overview of a slide and lay its attention over it.

    Returns:
        uint8 ``(height, width, 3)``, its longer side at most `max_px`.

    Raises:
        SlideError: the slide is not there or cannot be read.
    """
    with open_slide(slide_path) as slide:
        overview, downsample_xy = slide.read_overview(max_px)
    overview_wh = (overview.shape[1], overview.shape[0])
    return blend(overview, attention_overlay(attention, xy_level0, tile_wh_level0, overview_wh, downsample_xy))


def with_legend(picture: np.ndarray, title: str) -> np.ndarray:
    """Put a colour bar, what it means and `title` below a picture.

    Args:
        picture: uint8 ``(height, width, 3)``.
        title: one line; shortened where it does not fit.

    Returns:
        uint8 RGB, `_LEGEND_HEIGHT_PX` higher and at least `_MIN_WIDTH_PX` wide, white around a small picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (max(width, _MIN_WIDTH_PX), height + _LEGEND_HEIGHT_PX), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    bar = Image.fromarray(np.repeat(_colours()[None], 12, axis=0)).resize((160, 12))
    top = height + 32
    canvas.paste(bar, (_MARGIN_PX + 36, top))
    draw.text((_MARGIN_PX, height + 8), _fitting(title, draw, font, canvas.width - 2 * _MARGIN_PX), "black", font)
    draw.text((_MARGIN_PX, top - 2), "least", "black", font)
    draw.text((_MARGIN_PX + 202, top - 2), f"most attended ({SCALING})", "black", font)
    return np.asarray(canvas)


def _fitting(text: str, draw: object, font: object, width_px: int) -> str:
    text = text.encode("ascii", "replace").decode() if not _draws(font, text) else text
    while draw.textlength(text, font=font) > width_px and len(text) > 4:  # type: ignore[attr-defined]
        text = text[:-4] + "..."
    return text


def _draws(font: object, text: str) -> bool:
    try:
        font.getmask(text)  # type: ignore[attr-defined]
    except (UnicodeError, ValueError, OSError):
        return False
    return True


def write_heatmap(
    path: Path, slide_path: Path, attention: np.ndarray, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int],
    *, title: str,
) -> None:  # fmt: skip
    """Write the heatmap of one slide as PNG.

    Raises:
        SlideError: the slide is not there or cannot be read; nothing is written.
        StorageError: the disk is full or the folder cannot be written.
    """
    from PIL import Image

    picture = attention_picture(slide_path, attention, xy_level0, tile_wh_level0)
    with write_atomically(path) as temporary:
        Image.fromarray(with_legend(picture, title)).save(temporary, format="PNG")


def read_tiles(
    slide_path: Path, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int], out_px: int = 160
) -> list[np.ndarray]:
    """Read a few tiles as small pictures, from the coarsest level that is still fine enough.

    Returns:
        uint8 ``(out_px, out_px, 3)`` each, in the order of `xy_level0`.

    Raises:
        SlideError: the slide is not there or cannot be read.
    """
    from PIL import Image

    tiles = []
    with open_slide(slide_path) as slide:
        wanted = max(1.0, tile_wh_level0[0] / out_px)
        fine = [level for level, (x, _) in enumerate(slide.level_downsamples) if x <= wanted * 1.01]
        level = max(fine, key=lambda index: slide.level_downsamples[index][0])
        down_x, down_y = slide.level_downsamples[level]
        wh = (max(1, round(tile_wh_level0[0] / down_x)), max(1, round(tile_wh_level0[1] / down_y)))
        for x, y in xy_level0:
            pixels = slide.read_region((int(x), int(y)), level, wh)
            tiles.append(np.asarray(Image.fromarray(pixels).resize((out_px, out_px), Image.Resampling.BOX)))
    return tiles
