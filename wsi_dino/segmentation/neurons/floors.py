"""What any method must beat, and what it cannot pass: grey values as affinities, one segment, the truth's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.neurons.affinities import compute_affinities
from wsi_dino.segmentation.neurons.agglomeration import agglomerate
from wsi_dino.segmentation.neurons.curve import best_row, compare, count_fragments, curve_of, row_at
from wsi_dino.segmentation.neurons.em_volume import EmSource
from wsi_dino.segmentation.neurons.fragments import edge_fragments, volume_fragments
from wsi_dino.segmentation.neurons.request import AgglomerationSpec, FragmentSpec

_SMOOTHING_PX = 1.0


def raw_affinities(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the darker of two neighbours, smoothed in plane and stretched: membranes are dark.

    Args:
        grey: uint8 ``(z, y, x)``.

    Returns:
        uint8 ``(3, z, y, x)``.
    """
    from scipy.ndimage import gaussian_filter

    smooth = np.stack([gaussian_filter(section, _SMOOTHING_PX) for section in grey])
    low, high = np.percentile(smooth[:: max(1, len(smooth) // 16)], [1, 99])
    stretched = np.clip((smooth.astype(np.float32) - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)
    out = np.repeat(stretched[None], 3, 0)
    out[0, 1:] = np.minimum(stretched[1:], stretched[:-1])
    out[1, :, 1:] = np.minimum(stretched[:, 1:], stretched[:, :-1])
    out[2, :, :, 1:] = np.minimum(stretched[:, :, 1:], stretched[:, :, :-1])
    return out


def compute_floors(
    val: EmSource, test: EmSource, fragments: FragmentSpec, agglomeration: AgglomerationSpec
) -> dict[str, dict[str, Any]]:
    """Return the figures of what learns nothing, on the test sections.

    ``raw-intensity``: grey values as affinities, threshold chosen on validation. ``one-segment``: all in one.
    ``truth-affinities``: the truth's own affinities through waterz's watershed, which must give a VOI of about 0;
    ``truth-through-fragments``: through the same fragments and scoring as everything else, the best threshold: what
    these fragments cost whatever the affinities are.
    """
    truth = test.read_labels()
    raw_val = _curve(raw_affinities(val.read_raw().voxels), val.read_labels(), fragments, agglomeration)
    raw_test = _curve(raw_affinities(test.read_raw().voxels), truth, fragments, agglomeration)
    threshold = best_row(raw_val)["threshold"]
    true_affinities = compute_affinities(truth).astype(np.uint8) * np.uint8(255)
    basins = edge_fragments(true_affinities)
    exact = agglomerate(true_affinities, basins, (0.5,), "mean")
    return {
        "raw-intensity": row_at(raw_test, threshold),
        "one-segment": compare(truth, np.ones(truth.shape, np.uint32)),
        "truth-affinities": compare(truth, exact.segmentation(basins, 0)),
        "truth-through-fragments": best_row(_curve(true_affinities, truth, fragments, agglomeration)),
    }


def _curve(
    affinities: npt.NDArray[np.uint8], truth: np.ndarray, fragments: FragmentSpec, agglomeration: AgglomerationSpec
) -> Sequence[dict[str, Any]]:
    found = edge_fragments(affinities) if fragments.method == "edges" else volume_fragments(affinities)
    merges = agglomerate(affinities, found, agglomeration.thresholds, agglomeration.scoring)
    return curve_of(count_fragments(truth, found), merges)
