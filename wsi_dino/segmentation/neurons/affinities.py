"""Affinities: whether a voxel and a predecessor lie in one neuron. One convention, everywhere.

``affinity[c, v] = 1`` when voxels ``v`` and ``v - offset_c`` hold the same neuron. Channels 0, 1, 2 look one voxel back
along z, y and x; this is what waterz takes. Values are 0..1 in float32, 0..255 in uint8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Offset = tuple[int, int, int]
NEAREST: tuple[Offset, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
_STEPS = ((1, 1, 1), (2, 3, 3), (3, 9, 9), (4, 27, 27))
# the twelve of Huang et al. 2022 (pixel-embedded affinity): in z, y, x one after the other, ever further
LONG_RANGE: tuple[Offset, ...] = tuple(
    (z, 0, 0) if axis == 0 else (0, y, 0) if axis == 1 else (0, 0, x) for z, y, x in _STEPS for axis in range(3)
)
_LEAST_SHARE, _MOST_SHARE = 0.05, 0.99


def compute_affinities(ids: np.ndarray, offsets: Sequence[Offset] = NEAREST) -> npt.NDArray[np.bool_]:
    """Return the affinities of a label volume.

    Where ``v - offset`` lies outside, the voxel's own neuron is thought to go on.

    Args:
        ids: ``(z, y, x)``, 0 = no neuron.
        offsets: how far back each channel looks.

    Returns:
        bool ``(channels, z, y, x)``.

    Examples:
        >>> compute_affinities(np.array([[[1, 1, 2, 0]]]))[2].astype(int)
        array([[[1, 1, 0, 0]]])
    """
    is_neuron = ids > 0
    affinities = np.repeat(is_neuron[None], len(offsets), 0)
    for channel, (z, y, x) in zip(affinities, offsets, strict=True):
        here, there = (
            ids[z:, y:, x:],
            ids[: len(ids) - z or None, : ids.shape[1] - y or None, : ids.shape[2] - x or None],
        )
        if here.size:
            channel[z:, y:, x:] &= here == there
    return affinities


def edges_inside(shape: Sequence[int], offsets: Sequence[Offset]) -> npt.NDArray[np.bool_]:
    """Return for each channel and voxel whether ``v - offset`` lies in the volume too: bool ``(channels, z, y, x)``."""
    inside = np.zeros((len(offsets), *shape), bool)
    for channel, (z, y, x) in zip(inside, offsets, strict=True):
        channel[z:, y:, x:] = True
    return inside


def widen_borders(ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return ids with 0 where the 3 x 3 neighbourhood in the section holds two neurons or more.

    For training only: touching neurons get a border to be learnt. Zeros in the neighbourhood do not count.
    (Lee 2018, thesis, A.1.4.)

    Examples:
        >>> widen_borders(np.array([[[1, 1, 1, 2, 2, 2]]], np.uint32))
        array([[[1, 1, 0, 0, 2, 2]]], dtype=uint32)
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    out = np.empty_like(ids)
    none = np.iinfo(ids.dtype).max
    for section, widened in zip(ids, out, strict=True):
        greatest = maximum_filter(section, 3, mode="nearest")
        least = minimum_filter(np.where(section == 0, none, section), 3, mode="nearest")
        widened[:] = np.where(greatest > least, 0, section)
    return out


def balance_weights(target: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return weights that let affinities of 0 and of 1 count alike; 0 where the target is not known.

    The rarer of the two is weighted up, by 99 at most (after the public code of PEA and CAD).

    Args:
        target: affinities.
        known: of the same shape.

    Examples:
        >>> balance_weights(np.array([True, True, True, False]), np.ones(4, bool)).tolist()
        [1.0, 1.0, 1.0, 3.0]
    """
    n_known = int(known.sum())
    share = float((target & known).sum()) / max(1, n_known)
    if share in (0.0, 1.0):
        return known.astype(np.float32)
    share = min(max(share, _LEAST_SHARE), _MOST_SHARE)
    ones, zeros = (1.0, share / (1 - share)) if share > 0.5 else ((1 - share) / share, 1.0)
    return (np.where(target, ones, zeros) * known).astype(np.float32)
