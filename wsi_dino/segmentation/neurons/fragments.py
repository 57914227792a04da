"""Fragments: small pieces of neurons that agglomeration joins, by watershed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.neurons.optional_libraries import require

_INSIDE = 0.5
EDGE_BYTES = (80, 150)  # of memory a voxel that `edge_fragments` was measured to take: the more fragments, the more


def section_fragments(affinities: np.ndarray, first_id: int = 1) -> npt.NDArray[np.uint64]:
    """Return the fragments of one section; every voxel is in one.

    Seeds as MALA's (Funke et al. 2018): where 1 - (affinity along y + along x) / 2 is below 0.5, plateaus of the
    greatest distance to what is not. They are flooded over a map that looks at all four neighbours of a voxel, so
    that of two touching neurons neither takes the rim of the other.

    Args:
        affinities: 0..1, or 0..255 in uint8: ``(3, y, x)``, or more channels, of which y and x are 1 and 2.
        first_id: of the first fragment.

    Returns:
        uint64 ``(y, x)``, consecutive from `first_id`.
    """
    segmentation = require("skimage.segmentation", "scikit-image")
    borders = _four_sided(*_in_plane(affinities))
    flooded = segmentation.watershed(borders, _seeds(border_map(affinities)))
    return np.asarray(flooded, np.uint64) + np.uint64(first_id - 1)


def _in_plane(affinities: np.ndarray) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    scale = np.float32(255 if affinities.dtype == np.uint8 else 1)
    return affinities[1].astype(np.float32) / scale, affinities[2].astype(np.float32) / scale


def _four_sided(along_y: npt.NDArray[np.float32], along_x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 1 - the mean affinity to the four neighbours; beyond the edge stands the other side's."""
    below = np.concatenate([along_y[1:], along_y[-1:]])
    right = np.concatenate([along_x[:, 1:], along_x[:, -1:]], 1)
    return np.asarray(1 - (along_y + below + along_x + right) / 4, np.float32)


def _seeds(borders: npt.NDArray[np.float32]) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt, label

    morphology = require("skimage.morphology", "scikit-image")
    is_inside = borders < _INSIDE
    if is_inside.all():
        return np.ones(borders.shape, np.int32)
    if not is_inside.any():
        return np.asarray(label(borders == borders.min())[0])
    distance = np.asarray(distance_transform_edt(is_inside), np.float32)
    tops = morphology.local_maxima(distance, connectivity=2, allow_borders=True) & is_inside
    return np.asarray(label(tops, np.ones((3, 3)))[0])


def border_map(affinities: np.ndarray) -> npt.NDArray[np.float32]:
    """Return 1 - (affinity along y + along x) / 2 of one section, float32 ``(y, x)`` in 0..1."""
    along_y, along_x = _in_plane(affinities)
    return np.asarray(1 - (along_y + along_x) / 2, np.float32)


def volume_fragments(affinities: Callable[[int], np.ndarray], shape: Sequence[int]) -> npt.NDArray[np.uint32]:
    """Return the fragments of all sections, numbered through.

    A section is worked on at a time and none knows of another, so that a volume in parts gives the same.

    Args:
        affinities: returns ``(3, y, x)`` of a section.
        shape: ``(z, y, x)``.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    out = np.empty(shape, np.uint32)
    last = 0
    for z in range(len(out)):
        out[z] = section_fragments(affinities(z), last + 1)
        last = int(out[z].max())
    return out


def edge_fragments(affinities: np.ndarray) -> npt.NDArray[np.uint32]:
    """Return the fragments of waterz's own watershed, on edges between voxels and in 3D at once.

    Voxels without any affinity, which it leaves out, join the nearest fragment of their section.

    Args:
        affinities: ``(3, z, y, x)``, float32 0..1 or uint8.

    Raises:
        ConfigError: waterz is not installed.
    """
    from wsi_dino.segmentation.neurons.waterz_calls import watershed

    found = watershed(affinities)
    next_id = int(found.max(initial=0)) + 1
    for section in found:
        next_id = _fill(section, next_id)
    is_used = np.zeros(next_id, bool)
    for section in found:
        is_used[section] = True
    numbers = np.cumsum(is_used, dtype=np.uint32)
    return np.stack([numbers[section] for section in found])


def _fill(section: npt.NDArray[np.uint64], next_id: int) -> int:
    """Give voxels of 0 the id of the nearest other voxel, or one of their own when there is none."""
    from scipy.ndimage import distance_transform_edt

    is_open = section == 0
    if is_open.all():
        section[:] = next_id
        return next_id + 1
    if is_open.any():
        nearest = distance_transform_edt(is_open, return_distances=False, return_indices=True)
        section[:] = section[tuple(nearest)]
    return next_id
