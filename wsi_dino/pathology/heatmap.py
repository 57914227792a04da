"""Values of tiles painted back onto their slide: a heatmap with its legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.tile_values import TileValues, colours, colours_of
from wsi_dino.provenance import write_atomically

_ALPHA = 0.55
_LEGEND_HEIGHT_PX = 56
_MIN_WIDTH_PX = 420
_MARGIN_PX = 12


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


def overlay_of(tiles: TileValues, overview_wh: tuple[int, int], downsample_xy: tuple[float, float]) -> np.ndarray:
    """Return the coloured values of a slide, to be laid over its overview.

    Args:
        tiles: what is painted.
        overview_wh: width and height of the overview in px.
        downsample_xy: level-0 px per px of the overview, for each axis.

    Returns:
        uint8 ``(height, width, 4)`` RGBA, fully transparent where no tile lies.
    """
    return coloured(*paint_tiles(tiles.shades, tiles.xy_level0, tiles.tile_wh_level0, overview_wh, downsample_xy))


def coloured(shades: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Return uint8 RGBA ``(height, width, 4)`` of shades in 0..1, fully transparent where nothing is covered."""
    overlay = np.zeros((*shades.shape, 4), np.uint8)
    overlay[..., :3] = colours_of(shades)
    overlay[..., 3] = np.where(covered, round(255 * _ALPHA), 0)
    return overlay


def blend(overview: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """Lay a uint8 RGBA overlay over a uint8 RGB overview of the same size."""
    alpha = overlay[..., 3:] / 255.0
    return np.rint(overview * (1 - alpha) + overlay[..., :3] * alpha).astype(np.uint8)


def heatmap_picture(slide_path: Path, tiles: TileValues, max_px: int = 1600) -> np.ndarray:
    """Read the overview of a slide and lay the values of its tiles over it.

    Returns:
        uint8 ``(height, width, 3)``, its longer side at most `max_px`.

    Raises:
        SlideError: the slide is not there or cannot be read.
    """
    with open_slide(slide_path) as slide:
        overview, downsample_xy = slide.read_overview(max_px)
    return blend(overview, overlay_of(tiles, (overview.shape[1], overview.shape[0]), downsample_xy))


def with_legend(picture: np.ndarray, title: str, ends: tuple[str, str]) -> np.ndarray:
    """Put a colour bar, what it means and `title` below a picture.

    Args:
        picture: uint8 ``(height, width, 3)``.
        title: one line; shortened where it does not fit.
        ends: what the left and the right end of the colour bar mean.

    Returns:
        uint8 RGB, `_LEGEND_HEIGHT_PX` higher and at least `_MIN_WIDTH_PX` wide, white around a small picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (max(width, _MIN_WIDTH_PX), height + _LEGEND_HEIGHT_PX), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    bar = Image.fromarray(np.repeat(colours()[None], 12, axis=0)).resize((160, 12))
    top = height + 32
    canvas.paste(bar, (_MARGIN_PX + 36, top))
    room = canvas.width - 2 * _MARGIN_PX
    draw.text((_MARGIN_PX, height + 8), _fitting(title, draw, font, room), "black", font)
    draw.text((_MARGIN_PX, top - 2), ends[0], "black", font)
    draw.text((_MARGIN_PX + 202, top - 2), _fitting(ends[1], draw, font, room - 202), "black", font)
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


def write_heatmap(path: Path, slide_path: Path, tiles: TileValues, *, title: str) -> None:
    """Write the heatmap of one slide as PNG.

    Raises:
        SlideError: the slide is not there or cannot be read; nothing is written.
        StorageError: the disk is full or the folder cannot be written.
    """
    from PIL import Image

    picture = with_legend(heatmap_picture(slide_path, tiles), title, tiles.ends)
    with write_atomically(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


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
