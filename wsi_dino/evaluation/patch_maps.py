"""Pictures of what an encoder's patch features tell: their principal components, and where they resemble a label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_N_COLOURS = 3
_RANGE = (2.0, 98.0)


def tile_pictures(pictures: Sequence[np.ndarray], columns: int, gap_px: int = 4) -> np.ndarray:
    """Lay pictures of one size side by side, row by row, white between them.

    Args:
        pictures: uint8 ``(side, side, 3)`` each, at least one.
        columns: pictures in a row.
        gap_px: white between neighbours.

    Returns:
        uint8 ``(height, width, 3)``.

    Examples:
        >>> tile_pictures([np.zeros((2, 2, 3), np.uint8)] * 3, columns=2, gap_px=1).shape
        (5, 5, 3)
    """
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap_px) - gap_px, columns * (width + gap_px) - gap_px, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        y, x = (number // columns) * (height + gap_px), (number % columns) * (width + gap_px)
        sheet[y : y + height, x : x + width] = picture
    return sheet


def principal_colours(maps: np.ndarray) -> np.ndarray:
    """Return the first three principal components of all patches together, as red, green and blue.

    Patches of like colour have like features, also across images. The sign of a component is chosen such that
    its largest loading is positive, so that the same maps give the same colours.

    Args:
        maps: float ``(n, channels, height, width)``.

    Returns:
        uint8 ``(n, height, width, 3)``.
    """
    n, channels, height, width = maps.shape
    patches = maps.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    centred = patches - patches.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, np.argsort(values)[::-1][:_N_COLOURS]]
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    parts = centred @ axes
    low, high = np.percentile(parts, _RANGE, axis=0)
    colours = np.clip((parts - low) / np.where(high > low, high - low, 1.0), 0, 1)
    full = np.zeros((len(colours), _N_COLOURS))
    full[:, : colours.shape[1]] = colours
    return np.rint(full.reshape(n, height, width, _N_COLOURS) * 255).astype(np.uint8)


def label_direction(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the unit vector from the mean patch of images without a label to that of images with it.

    Args:
        positive: float ``(n, channels, height, width)`` maps of images with the label.
        negative: the same without it.

    Returns:
        float64 ``(channels,)``.
    """
    direction = positive.mean((0, 2, 3), dtype=np.float64) - negative.mean((0, 2, 3), dtype=np.float64)
    return np.asarray(direction / max(float(np.linalg.norm(direction)), 1e-12))


def similarity_maps(maps: np.ndarray, direction: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return how far each patch points along `direction`: the cosine after the `centre` is taken off.

    Args:
        maps: float ``(n, channels, height, width)``.
        direction: ``(channels,)``, of length 1.
        centre: ``(channels,)``, the mean patch.

    Returns:
        float64 ``(n, height, width)`` from -1 to 1.
    """
    patches = maps.transpose(0, 2, 3, 1).astype(np.float64) - centre
    lengths = np.maximum(np.linalg.norm(patches, axis=-1), 1e-12)
    return np.asarray(patches @ direction / lengths)


def heat_over(picture: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """Return `picture` with positive heat in red over it, up to `limit`; what is below 0 stays as it is.

    Args:
        picture: uint8 ``(side, side, 3)``.
        heat: float ``(height, width)``, enlarged to the picture.
        limit: the heat of full red.
    """
    from PIL import Image

    size = (picture.shape[1], picture.shape[0])
    enlarged = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    share = 0.65 * np.clip(enlarged / max(limit, 1e-12), 0, 1)[..., None]
    red = np.array([220.0, 40.0, 20.0])
    return np.rint(picture * (1 - share) + red * share).astype(np.uint8)


def enlarged(picture: np.ndarray, side_px: int, *, smooth: bool) -> np.ndarray:
    """Return a uint8 ``(height, width, 3)`` picture resized to a square; `smooth` or in whole patches."""
    from PIL import Image

    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((side_px, side_px), method))
