"""Agglomeration: fragments joined in the order of their affinities, by waterz, at many thresholds in one go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import ConfigError
from wsi_dino.segmentation.neurons.waterz_calls import join

_QUANTILE = re.compile(r"quantile-(\d+)")
_QUANTILES = (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95)
DEFAULT_SCORING = "quantile-50"


@dataclass(frozen=True)
class Merges:
    """Which segment each fragment belongs to, at each threshold.

    Attributes:
        thresholds: ascending; at a higher one more is joined.
        segments: uint32 ``(n_thresholds, n_fragments + 1)``; entry 0 is of no fragment.
    """

    thresholds: tuple[float, ...]
    segments: npt.NDArray[np.uint32]

    def segmentation(self, fragments: np.ndarray, index: int) -> npt.NDArray[np.uint32]:
        """Return the segments of fragments at the threshold of `index`; same shape, uint32."""
        return self.segments[index][fragments]


def scoring_function(scoring: str) -> tuple[str, int]:
    """Return waterz's name of a scoring function and the bins of its queue.

    Args:
        scoring: ``mean``, or ``quantile-Q`` with Q of 10, 15 ... 95: what stands for all affinities between two
            segments. These need no compiler.

    Raises:
        ConfigError: another.

    Examples:
        >>> scoring_function("quantile-50")
        ('OneMinus<HistogramQuantileAffinity<RegionGraphType, 50, ScoreValue, 256>>', 256)
    """
    if scoring == "mean":
        return "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>", 0
    match = _QUANTILE.fullmatch(scoring)
    if match is None or int(match.group(1)) not in _QUANTILES:
        raise ConfigError(f"--scoring {scoring}: expected mean or quantile-Q with Q of 10, 15, 20 ... 95.")
    return f"OneMinus<HistogramQuantileAffinity<RegionGraphType, {match.group(1)}, ScoreValue, 256>>", 256


def agglomerate(
    affinities: np.ndarray,
    fragments: npt.NDArray[np.uint64],
    thresholds: Sequence[float],
    scoring: str = DEFAULT_SCORING,
) -> Merges:
    """Join fragments whose affinity is high enough.

    A threshold is on 1 - affinity: at 0.3, segments are joined while the affinity between them is above 0.7.

    Args:
        affinities: 0..1 float32, or 0..255 uint8, ``(3, z, y, x)``.
        fragments: ``(z, y, x)``, ids 1 .. n, every one present; left as they are.
        thresholds: in any order.
        scoring: see `scoring_function`.

    Raises:
        ConfigError: waterz is not installed, or shapes or thresholds make no sense.
    """
    wanted = tuple(sorted({float(value) for value in thresholds}))
    if not wanted or wanted[0] < 0 or wanted[-1] > 1:
        raise ConfigError(f"Joining fragments: thresholds must be from 0 to 1, got {list(thresholds)}.")
    if affinities.shape != (3, *fragments.shape):
        raise ConfigError(
            f"Joining fragments: affinities must be (3, z, y, x), got {affinities.shape} for {fragments.shape}."
        )
    function, n_bins = scoring_function(scoring)
    voxels = first_voxels(fragments)
    steps = join(affinities, fragments, wanted, function, n_bins)
    return Merges(wanted, np.stack([_segments(step, voxels) for step in steps]))


def first_voxels(fragments: np.ndarray) -> npt.NDArray[np.int64]:
    """Return for each id from 1 the flat place of one of its voxels.

    Raises:
        ConfigError: an id from 1 to the greatest has no voxel, or there is a 0.
    """
    flat = fragments.reshape(-1)
    places = np.full(int(flat.max(initial=0)) + 1, -1, np.int64)
    step = 1 << 24
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        places[part] = np.arange(start, start + len(part))
    if places[0] >= 0 or (places[1:] < 0).any() or len(places) == 1:
        raise ConfigError("Joining fragments: their ids must be 1 .. n without gap, and no voxel may be 0.")
    return places[1:]


def _segments(step: Any, voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    _, numbers = np.unique(step.reshape(-1)[voxels], return_inverse=True)
    return np.concatenate([[0], numbers + 1]).astype(np.uint32)
