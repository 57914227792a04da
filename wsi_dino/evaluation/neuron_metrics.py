"""Figures of merit of neuron segmentation: variation of information and adapted Rand error.

Both compare partitions, so ids need not agree. Voxels whose *true* id is ignored count nowhere; ids of the
segmentation are never ignored. Equal to scikit-image's functions of these names with the same `ignored`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wsi_dino.errors import ConfigError, ResultError

# CREMI marks voxels without a neuron so; its evaluation adds 1, which wraps to 0, and ignores 0
CREMI_IGNORED = (0, 2**64 - 1)


@dataclass(frozen=True)
class Contingency:
    """How many voxels each pair of true and found id has in common.

    Attributes:
        n_shared: ``(n_pairs,)`` voxels of each pair that occurs.
        truth, found: ``(n_pairs,)`` its indices into the sizes below.
        truth_sizes, found_sizes: voxels of each object, ignored ones left out; float64.
    """

    n_shared: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    truth_sizes: np.ndarray
    found_sizes: np.ndarray

    @property
    def n_voxels(self) -> float:
        """Voxels that count."""
        return float(self.n_shared.sum())


@dataclass(frozen=True)
class VariationOfInformation:
    """Variation of information, in bits.

    Attributes:
        split: H(found | truth): true objects in pieces.
        merge: H(truth | found): objects that hold several true ones.
    """

    split: float
    merge: float

    @property
    def sum(self) -> float:
        """Split and merge together."""
        return self.split + self.merge


@dataclass(frozen=True)
class AdaptedRand:
    """Adapted Rand error.

    Attributes:
        error: 1 - F of precision and recall: 0 is perfect.
        precision: share of the pairs of voxels in one found object that are in one true object; low by merging.
        recall: share of the pairs in one true object that are in one found object; low by splitting.
            (scikit-image returns these two under each other's name.)
    """

    error: float
    precision: float
    recall: float


def count_contingency(truth: np.ndarray, found: np.ndarray, ignored: Iterable[int] = (0,)) -> Contingency:
    """Count voxels of each pair of ids.

    Args:
        truth: ids, whole numbers of any shape; uint64 as CREMI has them is kept.
        found: ids of the same shape.
        ignored: true ids whose voxels do not count: 0 by default, `CREMI_IGNORED` for CREMI's own files.

    Raises:
        ResultError: shapes differ, ids are no whole numbers, or negative: the id 2**64 - 1 becomes -1 by a cast.

    Examples:
        >>> count_contingency(np.array([0, 1, 1, 2]), np.array([7, 7, 7, 8])).n_shared
        array([2., 1.])
    """
    import pandas

    runs_truth, runs_found, lengths = _runs(*_checked(truth, found))
    limits = np.iinfo(runs_truth.dtype)
    dropped = np.array([id_ for id_ in ignored if limits.min <= id_ <= limits.max], runs_truth.dtype)
    kept = ~np.isin(runs_truth, dropped)
    lengths = lengths[kept]
    truth_index, _ = pandas.factorize(runs_truth[kept])  # by hashing: several times as fast as sorting
    found_index, found_ids = pandas.factorize(runs_found[kept])
    pair_index, pairs = pandas.factorize(truth_index * len(found_ids) + found_index)
    truth_of_pair, found_of_pair = np.divmod(pairs, max(1, len(found_ids)))
    n_shared, truth_sizes, found_sizes = (
        np.bincount(index, lengths) for index in (pair_index, truth_index, found_index)
    )
    return Contingency(n_shared, truth_of_pair, found_of_pair, truth_sizes, found_sizes)


def _checked(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, found = np.asarray(truth), np.asarray(found)
    if truth.shape != found.shape:
        raise ResultError(f"Comparing neurons: ids must have one shape, got {truth.shape} and {found.shape}.")
    for name, ids in (("truth", truth), ("segmentation", found)):
        if ids.dtype.kind not in "iu":
            raise ResultError(f"Comparing neurons: ids of the {name} must be whole numbers, got {ids.dtype}.")
        if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
            raise ResultError(
                f"Comparing neurons: ids of the {name} must not be negative, got {ids.min()}.\n"
                "Keep uint64: cast to a signed type, the id 2**64 - 1 of unlabelled voxels becomes -1."
            )
    return truth.ravel(), found.ravel()


def _runs(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and lengths of runs of one pair of ids: neighbours mostly share theirs, so that runs are few."""
    changes = (truth[1:] != truth[:-1]) | (found[1:] != found[:-1])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(truth) else np.zeros(0, np.int64)
    return truth[starts], found[starts], np.diff(starts, append=len(truth)).astype(np.float64)


def variation_of_information(table: Contingency) -> VariationOfInformation:
    """Return split and merge in bits; NaN when no voxel counts.

    Examples:
        >>> truth, found = np.array([1, 1, 1, 1, 2, 2, 2, 2]), np.array([1, 1, 2, 2, 3, 3, 3, 3])
        >>> variation_of_information(count_contingency(truth, found))
        VariationOfInformation(split=0.5, merge=0.0)
    """
    if not table.n_voxels:
        return VariationOfInformation(math.nan, math.nan)
    shares = table.n_shared / table.n_voxels
    split = np.sum(shares * np.log2(table.truth_sizes[table.truth] / table.n_shared))
    merge = np.sum(shares * np.log2(table.found_sizes[table.found] / table.n_shared))
    return VariationOfInformation(float(split), float(merge))


def adapted_rand(table: Contingency, *, corrected: bool = True) -> AdaptedRand:
    """Return the adapted Rand error.

    Args:
        table: from `count_contingency`.
        corrected: count pairs of different voxels, as scikit-image does; False counts each voxel with itself too.

    Returns:
        NaN where there is no pair: no voxel counts, or (precision, recall) all objects are single voxels.

    Examples:
        >>> truth, found = np.array([1, 1, 1, 1, 2, 2, 2, 2]), np.array([1, 1, 2, 2, 3, 3, 3, 3])
        >>> adapted_rand(count_contingency(truth, found))
        AdaptedRand(error=0.2, precision=1.0, recall=0.666...)
    """
    alone = table.n_voxels if corrected else 0.0
    shared, truth, found = (
        float(np.sum(sizes**2)) - alone for sizes in (table.n_shared, table.truth_sizes, table.found_sizes)
    )
    # closed form of 1 - 2 P R / (P + R), which is defined without a shared pair too
    error = (truth + found - 2 * shared) / (truth + found) if truth + found else math.nan
    return AdaptedRand(
        error, shared / found if found else math.nan, shared / truth if truth else math.nan
    )  # fmt: skip


def cremi_score(voi: VariationOfInformation, rand: AdaptedRand) -> float:
    """Return the score of the CREMI challenge: the geometric mean of VOI and adapted Rand error; lower is better.

    Raises:
        ConfigError: one of them is negative.

    Examples:
        >>> round(cremi_score(VariationOfInformation(0.5, 0.0), AdaptedRand(0.2, 1.0, 0.667)), 6)
        0.316228
    """
    if voi.sum < 0 or rand.error < 0:
        raise ConfigError(f"CREMI score: VOI and error must not be negative, got {voi.sum:g} and {rand.error:g}.")
    return math.sqrt(voi.sum * rand.error)
