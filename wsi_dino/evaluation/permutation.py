"""Paired permutation test of two AUCs: would swapping the two encoders within patients matter?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions
from wsi_dino.evaluation.delong import structural_components

EXACT_UP_TO = 16  # patients that matter: 65,536 ways to swap
_AT_ONCE = 4000
_SLACK = 1e-9


@dataclass(frozen=True)
class PermutationTest:
    """How often chance alone gives a difference as large.

    Attributes:
        p: two-sided. Of sampled swaps (1 + hits) / (1 + drawn), so never 0.
        n: swaps looked at.
        is_exact: whether these are all there are.
    """

    p: float
    n: int
    is_exact: bool


def swap_weights(first: Sequence[FoldPredictions], second: Sequence[FoldPredictions]) -> np.ndarray:
    """Return how much of the difference of two mean AUCs hangs on each patient: float64 ``(n_patients,)``.

    In each fold and for each encoder the scores become ranks first, so that encoders of different
    scale can be swapped. When the two ranks of every slide of patient p are swapped where
    ``sign[p] == -1``, the difference of the mean AUCs is exactly ``sign @ weights``: each slide is
    compared with both ranks of every slide of the other class, whatever the swaps there. (For a pair i,
    j of different classes with K the comparison, ``K(a_i, a_j) - K(b_i, b_j)`` if both or none are
    swapped and ``K(a_i, b_j) - K(b_i, a_j)`` if one is; the products of signs cancel.)

    Args:
        first: predictions of one encoder, a fold each.
        second: those of the other, of the same slides in the same order.

    Raises:
        ValueError: the slides differ, or a score is not finite.
    """
    _check_same_slides(first, second)
    owners = np.concatenate([np.asarray(fold.patient_id, dtype=str) for fold in first])
    patients, patient_of = np.unique(owners, return_inverse=True)
    slides = [_slide_weights(a, b) / len(first) for a, b in zip(first, second, strict=True)]
    return np.bincount(patient_of, np.concatenate(slides), len(patients))


def _check_same_slides(first: Sequence[FoldPredictions], second: Sequence[FoldPredictions]) -> None:
    for a, b in zip(first, second, strict=True):
        if not np.array_equal(a.y_true, b.y_true) or list(a.patient_id) != list(b.patient_id):
            raise ValueError("expected the same slides in the same order from both encoders")
        if not (np.isfinite(a.scores).all() and np.isfinite(b.scores).all()):
            raise ValueError("expected finite scores")


def _slide_weights(first: FoldPredictions, second: FoldPredictions) -> np.ndarray:
    """Weight of each slide in one fold; NaN when only one class is tested."""
    if first.scores.ndim == 1:
        return _binary_weights(first.y_true == 1, first.scores, second.scores)
    classes = range(first.scores.shape[1])
    each = [_binary_weights(first.y_true == c, first.scores[:, c], second.scores[:, c]) for c in classes]
    return np.asarray(np.mean(each, axis=0))


def _binary_weights(is_positive: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if is_positive.all() or not is_positive.any():
        return np.full(len(is_positive), np.nan)
    n = len(a)
    # each slide once with its rank by a and once with that by b, all in one pool
    above, below = structural_components(np.tile(is_positive, 2), np.concatenate([_ranks(a), _ranks(b)]))
    weights = np.empty(n)
    for chosen, components in ((is_positive, above), (~is_positive, below)):
        by_a, by_b = np.split(components, 2)
        weights[chosen] = (by_a - by_b) / chosen.sum()
    return weights


def _ranks(score: np.ndarray) -> np.ndarray:
    """Rank from 1, equal scores sharing the mean of theirs."""
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[inverse])


def permutation_tests(weights: np.ndarray, n_permutations: int = 99_999, seed: int = 0) -> list[PermutationTest]:
    """Test each column of `weights`, all by the same swaps.

    Where at most `EXACT_UP_TO` patients have a weight other than 0, all swaps are looked at.

    Args:
        weights: ``(n_patients, n_tests)`` of `swap_weights`; a NaN gives a NaN `p`.
        n_permutations: swaps to draw.
        seed: of the drawing.

    Examples:
        >>> permutation_tests(np.array([[0.1], [0.1], [0.1]]))[0]  # 2 of the 8 ways are as large
        PermutationTest(p=0.25, n=8, is_exact=True)
    """
    matters = (weights != 0).sum(0)
    small = matters <= EXACT_UP_TO
    sampled = iter(_sampled(weights[:, ~small], n_permutations, seed))
    return [_exact(weights[:, i][weights[:, i] != 0]) if small[i] else next(sampled) for i in range(weights.shape[1])]


def _bound(weights: np.ndarray) -> np.ndarray:
    """The observed size, less what rounding can take from an equal one."""
    return np.asarray(np.abs(weights.sum(0)) - _SLACK * np.abs(weights).sum(0))


def _exact(weights: np.ndarray) -> PermutationTest:
    if np.isnan(weights).any():
        return PermutationTest(float("nan"), 0, True)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(weights)))).reshape(2 ** len(weights), -1)
    hits = np.abs(signs @ weights) >= _bound(weights)
    return PermutationTest(float(hits.mean()), len(signs), True)


def _sampled(weights: np.ndarray, n_permutations: int, seed: int) -> list[PermutationTest]:
    if not weights.size:
        return []
    random, bound = np.random.default_rng(seed), _bound(weights)
    hits = np.zeros(weights.shape[1], np.int64)
    for start in range(0, n_permutations, _AT_ONCE):
        n = min(_AT_ONCE, n_permutations - start)
        bits = random.integers(0, 256, (n, -(-len(weights) // 8)), np.uint8)
        signs = 1.0 - 2.0 * np.unpackbits(bits, axis=1)[:, : len(weights)]
        hits += (np.abs(signs @ weights) >= bound).sum(0)
    shares = np.where(np.isnan(weights).any(0), np.nan, (1 + hits) / (1 + n_permutations))
    return [PermutationTest(float(p), n_permutations, False) for p in shares]
