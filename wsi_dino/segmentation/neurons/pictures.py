"""Sections with borders and segments for the report; a segment has the colour of the neuron it covers most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.neurons.fragments import border_map

Picture = npt.NDArray[np.uint8]
SHOWN_VOXELS = 256
_GOLDEN = 0.6180339887498949
_OPACITY = 0.5
_SIDE_PX = 300


@dataclass(frozen=True)
class SectionPictures:
    """One section four times: grey values, predicted borders, segments, true neurons."""

    raw: Picture
    borders: Picture
    segments: Picture
    truth: Picture


def section_pictures(
    grey: npt.NDArray[np.uint8], affinities: npt.NDArray[np.uint8], segments: np.ndarray, truth: np.ndarray
) -> SectionPictures:
    """Return the middle of a section, of 256 x 256 voxels at most.

    Args:
        grey: uint8 ``(y, x)``.
        affinities: uint8 ``(3, y, x)``.
        segments: ids.
        truth: ids, 0 = no neuron.
    """
    box = middle(grey.shape)
    image = np.repeat(grey[box][..., None], 3, -1)
    borders = np.repeat((border_map(affinities[(slice(None), *box)]) * 255).astype(np.uint8)[..., None], 3, -1)
    matched = matched_ids(segments[box], truth[box])
    return SectionPictures(
        *(larger(item) for item in (image, borders, coloured(image, matched), coloured(image, truth[box])))
    )


def middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the box of at most 256 x 256 voxels around the middle."""
    starts = [max(0, (side - SHOWN_VOXELS) // 2) for side in shape[-2:]]
    return slice(starts[0], starts[0] + SHOWN_VOXELS), slice(starts[1], starts[1] + SHOWN_VOXELS)


def matched_ids(segments: np.ndarray, truth: np.ndarray) -> npt.NDArray[np.int64]:
    """Return segments under the id of the true neuron that they cover most; further pieces of it have their own.

    Examples:
        >>> matched_ids(np.array([[7, 7, 8, 9]]), np.array([[1, 1, 1, 2]])).tolist()
        [[1, 1, 1000008, 2]]
    """
    out = segments.astype(np.int64) + 1_000_000
    is_neuron = truth > 0
    if not is_neuron.any():
        return out
    table = np.stack([segments[is_neuron].astype(np.int64), truth[is_neuron].astype(np.int64)])
    pairs, counts = np.unique(table, axis=1, return_counts=True)
    taken: set[int] = set()
    given: set[int] = set()
    for place in np.argsort(-counts, kind="stable"):
        segment, neuron = int(pairs[0, place]), int(pairs[1, place])
        if segment not in given and neuron not in taken:
            out[segments == segment] = neuron
            taken.add(neuron)
        given.add(segment)
    return out


def colours_of(ids: np.ndarray) -> npt.NDArray[np.float32]:
    """Return a colour for each id, always the same one: hues a golden section apart, in turn light and dark."""
    from matplotlib.colors import hsv_to_rgb

    hue = (ids.astype(np.float64) * _GOLDEN) % 1
    saturation = 0.65 + 0.35 * ((ids // 3) % 2)
    value = 0.75 + 0.25 * (ids % 2)
    return np.asarray(hsv_to_rgb(np.stack([hue, saturation, value], -1)) * 255, np.float32)


def coloured(image: Picture, ids: np.ndarray) -> Picture:
    """Return the picture with each id in its colour, half transparent, and lines between ids; 0 stays grey."""
    mixed = image.astype(np.float32)
    is_shown = ids > 0
    mixed[is_shown] = (1 - _OPACITY) * mixed[is_shown] + _OPACITY * colours_of(ids[is_shown])
    is_line = np.zeros(ids.shape, bool)
    is_line[1:] |= ids[1:] != ids[:-1]
    is_line[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    mixed[is_line] *= 0.35
    return mixed.astype(np.uint8)


def larger(picture: Picture) -> Picture:
    """Return a picture of about 300 px or more, pixels sharp."""
    factor = max(1, round(_SIDE_PX / max(picture.shape[:2])))
    return np.repeat(np.repeat(picture, factor, 0), factor, 1)
