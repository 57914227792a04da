"""What any method must beat, and what it cannot pass: grey values as affinities, one segment, the truth's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.neurons.affinities import compute_affinities
from wsi_dino.segmentation.neurons.agglomeration import MOST_VOXELS_AT_ONCE, agglomerate, agglomerate_volume
from wsi_dino.segmentation.neurons.curve import best_row, compare, count_fragments, curve_of, row_at
from wsi_dino.segmentation.neurons.em_volume import EmSource
from wsi_dino.segmentation.neurons.fragments import edge_fragments, volume_fragments
from wsi_dino.segmentation.neurons.request import AgglomerationSpec, FragmentSpec

Affinities = Callable[[int], npt.NDArray[np.uint8]]
_SMOOTHING_PX = 1.0


def raw_affinities(grey: npt.NDArray[np.uint8]) -> Affinities:
    """Return what tells the affinities of a section: the darker of two neighbours, smoothed in plane and stretched.

    Membranes are dark.

    Args:
        grey: uint8 ``(z, y, x)``.

    Returns:
        Takes the number of a section and returns uint8 ``(3, y, x)``.
    """
    step = max(1, len(grey) // 16)
    low, high = np.percentile(np.stack([_smooth(section) for section in grey[::step]]), [1, 99])

    def stretched(z: int) -> npt.NDArray[np.uint8]:
        scaled = (_smooth(grey[z]).astype(np.float32) - low) * (255 / max(high - low, 1))
        return np.clip(scaled, 0, 255).astype(np.uint8)

    def affinities(z: int) -> npt.NDArray[np.uint8]:
        here = stretched(z)
        out = np.repeat(here[None], 3, 0)
        out[0] = np.minimum(here, stretched(max(0, z - 1)))
        out[1, 1:] = np.minimum(here[1:], here[:-1])
        out[2, :, 1:] = np.minimum(here[:, 1:], here[:, :-1])
        return out

    return affinities


def _smooth(section: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    from scipy.ndimage import gaussian_filter

    smooth: npt.NDArray[np.uint8] = gaussian_filter(section, _SMOOTHING_PX)
    return smooth


def true_affinities(truth: npt.NDArray[np.uint32]) -> Affinities:
    """Return what tells the truth's own affinities of a section, uint8 ``(3, y, x)`` of 0 and 255."""
    return lambda z: compute_affinities(truth[max(0, z - 1) : z + 1])[:, -1].astype(np.uint8) * np.uint8(255)


def compute_floors(
    val: EmSource, test: EmSource, fragments: FragmentSpec, agglomeration: AgglomerationSpec
) -> dict[str, dict[str, Any]]:
    """Return the figures of what learns nothing, on the test sections.

    ``raw-intensity``: grey values as affinities, threshold chosen on validation. ``one-segment``: all in one.
    ``truth-affinities``: the truth's own affinities through waterz's watershed, which gives a VOI of 0 where each
    neuron hangs together; voxels without a neighbour in their neuron, of which affinities tell nothing, are left out
    (of a large volume, its first sections, as many as fit);
    ``truth-through-fragments``: through the same fragments and scoring as everything else, the best threshold: what
    these fragments cost whatever the affinities are.
    """
    truth = test.read_labels()
    curves = [
        _curve(raw_affinities(source.read_raw().voxels), source.read_labels(), fragments, agglomeration)
        for source in (val, test)
    ]
    return {
        "raw-intensity": row_at(curves[1], best_row(curves[0])["threshold"]),
        "one-segment": compare(truth, np.ones(truth.shape, np.uint32)),
        "truth-affinities": _exact(truth[: max(1, MOST_VOXELS_AT_ONCE // truth[0].size)]),
        "truth-through-fragments": best_row(_curve(true_affinities(truth), truth, fragments, agglomeration)),
    }


def _exact(truth: npt.NDArray[np.uint32]) -> dict[str, float]:
    affinities = _stacked(true_affinities(truth), len(truth))
    basins = edge_fragments(affinities)
    found = agglomerate(affinities, basins, (0.5,), "mean").segmentation(basins, 0)
    return compare(np.where(has_neighbour(truth), truth, 0), found)


def has_neighbour(truth: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Return which voxels share their neuron with one of their six neighbours: what affinities can tell of.

    Examples:
        >>> has_neighbour(np.array([[[1, 1, 2, 0, 0]]], np.uint32)).tolist()
        [[[True, True, False, False, False]]]
    """
    found = np.zeros(truth.shape, bool)
    for axis in range(3):
        ids, places = np.moveaxis(truth, axis, 0), np.moveaxis(found, axis, 0)
        same = (ids[1:] == ids[:-1]) & (ids[1:] > 0)
        places[1:] |= same
        places[:-1] |= same
    return found


def _stacked(affinities: Affinities, n_sections: int) -> npt.NDArray[np.uint8]:
    return np.stack([affinities(z) for z in range(n_sections)], 1)


def _curve(
    affinities: Affinities,
    truth: npt.NDArray[np.uint32],
    fragments: FragmentSpec,
    agglomeration: AgglomerationSpec,
) -> list[dict[str, Any]]:
    if fragments.method == "edges":
        found = edge_fragments(_stacked(affinities, len(truth)))
    else:
        found = volume_fragments(affinities, truth.shape)
    merges = agglomerate_volume(
        lambda z: (affinities(z), found[z]), truth.shape, agglomeration.thresholds, agglomeration.scoring
    )
    return curve_of(count_fragments(truth, found), merges)
