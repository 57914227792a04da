"""VOI and adapted Rand error at every threshold, from one count of voxels in fragments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.neuron_metrics import Contingency, adapted_rand, count_contingency, variation_of_information
from wsi_dino.segmentation.neurons.agglomeration import Merges


@dataclass(frozen=True)
class FragmentCounts:
    """How many voxels of each true neuron lie in each fragment; voxels without a neuron are left out.

    Attributes:
        truth, fragment: ids of each pair that occurs.
        n_voxels: of each pair, float64.
    """

    truth: npt.NDArray[np.int64]
    fragment: npt.NDArray[np.int64]
    n_voxels: npt.NDArray[np.float64]

    def joined(self, segments: npt.NDArray[np.uint32]) -> Contingency:
        """Return the same counts for segments, given that of each fragment."""
        truth_ids, truth = np.unique(self.truth, return_inverse=True)
        found_ids, found = np.unique(segments[self.fragment], return_inverse=True)
        pairs, pair = np.unique(truth * max(1, len(found_ids)) + found, return_inverse=True)
        n_shared = np.bincount(pair, self.n_voxels, minlength=len(pairs))
        return Contingency(
            n_shared, *np.divmod(pairs, max(1, len(found_ids))),
            np.bincount(truth, self.n_voxels, minlength=len(truth_ids)),
            np.bincount(found, self.n_voxels, minlength=len(found_ids)),
        )  # fmt: skip


def count_fragments(truth: np.ndarray, fragments: np.ndarray) -> FragmentCounts:
    """Count voxels of each pair of true neuron and fragment, a section at a time.

    Args:
        truth: ids ``(z, y, x)``; voxels of 0 count nowhere.
        fragments: of the same shape.

    Raises:
        ResultError: shapes differ, or no voxel has a true neuron.
    """
    if truth.shape != fragments.shape:
        raise ResultError(f"Comparing neurons: truth is {truth.shape}, the segmentation {fragments.shape}.")
    parts = [_counted(*both) for both in zip(truth, fragments, strict=True) if both[0].any()]
    if not parts:
        raise ResultError("Comparing neurons: no voxel of the truth holds a neuron.")
    truth_ids, fragment_ids, n_voxels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return FragmentCounts(truth_ids, fragment_ids, n_voxels)


def _counted(truth: np.ndarray, section: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of one section: runs of one pair are counted, which are few, not voxels."""
    is_neuron = truth > 0
    truth, section = truth[is_neuron], section[is_neuron]
    starts = np.flatnonzero(np.append(True, (truth[1:] != truth[:-1]) | (section[1:] != section[:-1])))
    truth_ids, of_truth = np.unique(truth[starts].astype(np.int64), return_inverse=True)
    fragment_ids, of_fragment = np.unique(section[starts].astype(np.int64), return_inverse=True)
    pairs, of_pair = np.unique(of_truth * len(fragment_ids) + of_fragment, return_inverse=True)
    counts = np.bincount(of_pair, np.diff(starts, append=len(truth)))
    return truth_ids[pairs // len(fragment_ids)], fragment_ids[pairs % len(fragment_ids)], counts


def curve_of(counts: FragmentCounts, merges: Merges) -> list[dict[str, Any]]:
    """Return ``threshold``, ``voi_split``, ``voi_merge``, ``voi``, ``arand`` and ``n_segments`` of each threshold."""
    return [
        {"threshold": threshold, **figures_of(counts.joined(segments)), "n_segments": int(segments.max())}
        for threshold, segments in zip(merges.thresholds, merges.segments, strict=True)
    ]


def figures_of(table: Contingency) -> dict[str, float]:
    """Return VOI (in bits) and adapted Rand error of one segmentation."""
    voi = variation_of_information(table)
    return {"voi_split": voi.split, "voi_merge": voi.merge, "voi": voi.sum, "arand": adapted_rand(table).error}


def compare(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return the figures of a segmentation; voxels without a true neuron count nowhere."""
    return figures_of(count_contingency(truth, found))


def best_row(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of least VOI; of equals the one of the lowest threshold.

    Examples:
        >>> best_row([{"threshold": 0.1, "voi": 2.0}, {"threshold": 0.5, "voi": 1.0}])
        {'threshold': 0.5, 'voi': 1.0}
    """
    return dict(min(curve, key=lambda row: row["voi"]))


def row_at(curve: Sequence[Mapping[str, Any]], threshold: float) -> dict[str, Any]:
    """Return the row of a threshold."""
    return dict(next(row for row in curve if row["threshold"] == threshold))
