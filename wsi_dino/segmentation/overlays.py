"""Pictures of slices with truth and prediction drawn on them, and of features as colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
# Okabe and Ito 2008, told apart with every common colour vision
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178))
_SIDE_PX = 300
_OPACITY = 0.45


@dataclass(frozen=True)
class Overlay:
    """One slice: the image, the truth and the prediction on it, and where they differ."""

    image: Picture
    truth: Picture
    predicted: Picture


def best_slice(truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8]) -> int:
    """Return the slice with most foreground in the truth, or in the prediction where the truth has none."""
    shown = truth if truth.any() else predicted
    return int((shown > 0).sum((1, 2)).argmax()) if shown.any() else len(truth) // 2


def make_overlay(
    grey: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    predicted: npt.NDArray[np.uint8],
    spacing_mm: tuple[float, float],
) -> Overlay:
    """Return one slice as three pictures of true proportions.

    Args:
        grey: uint8 ``(y, x)``.
        truth: labels.
        predicted: labels.
        spacing_mm: (y, x).
    """
    image = np.repeat(grey[..., None], 3, -1)
    shown = (image, painted(image, truth), painted(image, predicted))
    return Overlay(*(enlarged(picture, spacing_mm) for picture in shown))


def painted(image: Picture, labels: npt.NDArray[np.uint8]) -> Picture:
    """Return the picture with each class in its colour, half transparent, and its rim in full."""
    mixed = image.astype(np.float32)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        colour = np.array(COLOURS[(int(value) - 1) % len(COLOURS)], np.float32)
        mixed[mask] = (1 - _OPACITY) * mixed[mask] + _OPACITY * colour
        mixed[mask & ~_inner(mask)] = colour
    return mixed.astype(np.uint8)


def _inner(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inner: npt.NDArray[np.bool_] = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner


def enlarged(picture: Picture, spacing_mm: tuple[float, float]) -> Picture:
    """Return a picture of about 300 px, with square millimetres; pixels stay sharp."""
    from PIL import Image

    height_mm, width_mm = (n * mm for n, mm in zip(picture.shape[:2], spacing_mm, strict=True))
    scale = _SIDE_PX / max(height_mm, width_mm)
    size = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST))


def principal_colours(maps: npt.NDArray[np.float32]) -> Picture:
    """Return the first three principal components of a map as red, green and blue.

    Args:
        maps: float32 ``(channels, height, width)``.
    """
    cells = maps.reshape(len(maps), -1).T
    centred = cells - cells.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    parts = centred @ directions[:3].T
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
    low, high = np.percentile(parts, [2, 98], axis=0)
    scaled = np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1)
    return (scaled.reshape(*maps.shape[1:], 3) * 255).astype(np.uint8)
