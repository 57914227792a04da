"""Agglomeration: fragments joined in the order of their affinities, at many thresholds in one go.

Volumes that fit go to waterz whole. Larger ones are counted a section at a time into a region graph, which is joined
by the same rules: the segments are the same (with ``mean`` but for what waterz rounds in float32).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import ConfigError
from wsi_dino.segmentation.neurons.region_graph import build_region_graph
from wsi_dino.segmentation.neurons.region_merging import ContactScores, MeanScores, QuantileScores, RegionMerging
from wsi_dino.segmentation.neurons.waterz_calls import join

_SCORING = re.compile(r"(max-)?quantile-(\d+)")
_QUANTILES = (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95)
DEFAULT_SCORING = "max-quantile-50"
MOST_VOXELS_AT_ONCE = 48_000_000  # of which waterz takes 3 GB
_QUEUE_BINS = 256


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


def check_scoring(scoring: str) -> None:
    """Raise ConfigError unless `scoring` is known.

    Known are, of the affinities between two segments: ``mean``; ``quantile-Q`` with Q of 10, 15 ... 95;
    ``max-quantile-Q``, where two fragments count by their greatest affinity alone, so that the quantile is over pairs
    of fragments (waterz's own default, and what public code of PEA and CAD has).
    """
    if scoring != "mean":
        _quantile(scoring)


def _quantile(scoring: str) -> tuple[bool, int]:
    match = _SCORING.fullmatch(scoring)
    if match is None or int(match.group(2)) not in _QUANTILES:
        raise ConfigError(
            f"--scoring {scoring}: expected mean, quantile-Q or max-quantile-Q, with Q of 10, 15, 20 ... 95."
        )
    return match.group(1) is not None, int(match.group(2))


def scoring_function(scoring: str) -> str:
    """Return waterz's name of a scoring; these need no compiler.

    Raises:
        ConfigError: see `check_scoring`.

    Examples:
        >>> scoring_function("max-quantile-50")
        'OneMinus<HistogramQuantileAffinity<RegionGraphType, 50, ScoreValue, 256>>'
    """
    if scoring == "mean":
        return "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"
    of_greatest, percent = _quantile(scoring)
    start = "" if of_greatest else ", false"
    return f"OneMinus<HistogramQuantileAffinity<RegionGraphType, {percent}, ScoreValue, 256{start}>>"


def agglomerate(
    affinities: np.ndarray,
    fragments: np.ndarray,
    thresholds: Sequence[float],
    scoring: str = DEFAULT_SCORING,
) -> Merges:
    """Join fragments whose affinity is high enough, by waterz.

    A threshold is on 1 - affinity: at 0.3, segments are joined while the affinity between them is above 0.7.

    Args:
        affinities: 0..1 float32, or 0..255 uint8, ``(3, z, y, x)``.
        fragments: ``(z, y, x)``, ids 1 .. n, every one present; left as they are.
        thresholds: in any order.
        scoring: see `check_scoring`.

    Raises:
        ConfigError: waterz is not installed, or shapes or thresholds make no sense.
    """
    wanted, function = _ascending(thresholds), scoring_function(scoring)
    if affinities.shape != (3, *fragments.shape):
        raise ConfigError(
            f"Joining fragments: affinities must be (3, z, y, x), got {affinities.shape} for {fragments.shape}."
        )
    voxels = first_voxels(fragments)
    steps = join(affinities, fragments, wanted, function, _QUEUE_BINS)
    return Merges(wanted, np.stack([_numbered(step.reshape(-1)[voxels]) for step in steps]))


def agglomerate_sections(
    section: Callable[[int], tuple[np.ndarray, np.ndarray]],
    n_sections: int,
    thresholds: Sequence[float],
    scoring: str = DEFAULT_SCORING,
) -> Merges:
    """Join fragments without the volume in memory: two sections are, and a histogram for each contact of fragments.

    The segments are those of `agglomerate`; with ``mean`` but for what float32 rounds there.

    Args:
        section: returns affinities ``(3, y, x)`` and fragments ``(y, x)`` of a section.
        n_sections: their number.
        thresholds: in any order.
        scoring: see `check_scoring`.

    Raises:
        ConfigError: thresholds, scoring or ids make no sense.
    """
    wanted = _ascending(thresholds)
    check_scoring(scoring)
    graph = build_region_graph(section(z) for z in range(n_sections))
    scores: ContactScores
    if scoring == "mean":
        scores = MeanScores(graph)
    else:
        of_greatest, percent = _quantile(scoring)
        scores = QuantileScores(graph, percent, of_greatest=of_greatest)
    steps = RegionMerging(graph, scores).segments(wanted)
    return Merges(wanted, np.stack([_numbered(step[1:]) for step in steps]))


def agglomerate_volume(
    section: Callable[[int], tuple[np.ndarray, np.ndarray]],
    shape: Sequence[int],
    thresholds: Sequence[float],
    scoring: str = DEFAULT_SCORING,
) -> Merges:
    """Join fragments, by waterz where the volume fits, else by sections.

    Args:
        section: see `agglomerate_sections`.
        shape: ``(z, y, x)``.
        thresholds: in any order.
        scoring: see `check_scoring`.
    """
    if math.prod(shape) > MOST_VOXELS_AT_ONCE:
        return agglomerate_sections(section, shape[0], thresholds, scoring)
    affinities, fragments = np.empty((3, *shape), np.uint8), np.empty(shape, np.uint64)
    for z in range(shape[0]):
        affinities[:, z], fragments[z] = section(z)
    return agglomerate(affinities, fragments, thresholds, scoring)


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Raise ConfigError unless there is one or more, all from 0 to 1."""
    _ascending(thresholds)


def _ascending(thresholds: Sequence[float]) -> tuple[float, ...]:
    wanted = tuple(sorted({float(value) for value in thresholds}))
    if not wanted or not all(0 <= value <= 1 for value in wanted):
        raise ConfigError(f"Joining fragments: thresholds must be from 0 to 1, got {list(thresholds)}.")
    return wanted


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


def _numbered(regions: np.ndarray) -> npt.NDArray[np.uint32]:
    """Return regions of fragments 1 .. n as numbers from 1, with the 0 of no fragment before them."""
    _, numbers = np.unique(regions, return_inverse=True)
    return np.concatenate([[0], numbers + 1]).astype(np.uint32)
