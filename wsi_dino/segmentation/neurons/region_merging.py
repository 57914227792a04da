"""Agglomeration of a region graph in the order of waterz with its queue of 256 bins, without the volume.

After Funke et al. 2018 and waterz (MIT): the contact of the lowest score is taken; a contact whose statistics changed
is scored anew and put back; else its two regions become one, and contacts with the same third region are added up, the
dearer one into the cheaper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.neurons.region_graph import N_BINS, RegionGraph


class ContactScores(Protocol):
    """What the affinities across a contact come to; 0 joins first, 1 last."""

    def all(self) -> list[float]:
        """Return the score of each contact before anything is joined."""

    def of(self, contact: int) -> float:
        """Return the score of a contact as it is now."""

    def add(self, contact: int, to: int) -> None:
        """Add one contact to another."""


class MeanScores:
    """1 - the mean affinity."""

    def __init__(self, graph: RegionGraph) -> None:
        starts = graph.bounds[:-1]
        self._sums: list[int] = np.add.reduceat(graph.bins * graph.counts, starts).tolist() if len(graph) else []
        self._counts: list[int] = np.add.reduceat(graph.counts, starts).tolist() if len(graph) else []

    def all(self) -> list[float]:
        """As `ContactScores.all`."""
        return [self.of(contact) for contact in range(len(self._sums))]

    def of(self, contact: int) -> float:
        """As `ContactScores.of`."""
        return 1 - self._sums[contact] / (self._counts[contact] * (N_BINS - 1))

    def add(self, contact: int, to: int) -> None:
        """As `ContactScores.add`."""
        self._sums[to] += self._sums[contact]
        self._counts[to] += self._counts[contact]


class QuantileScores:
    """1 - a quantile of the affinities, from a histogram.

    Args:
        graph: contacts.
        percent: the quantile.
        of_greatest: a contact of two fragments is its greatest affinity alone, once (as waterz by default).
    """

    def __init__(self, graph: RegionGraph, percent: int, *, of_greatest: bool = False) -> None:
        self._percent = percent
        last = graph.bounds[1:] - 1
        self._bounds = np.arange(len(last) + 1) if of_greatest else graph.bounds
        self._bins = graph.bins[last] if of_greatest else graph.bins
        self._counts = np.ones(len(last), np.int64) if of_greatest else graph.counts
        self._joined: dict[int, npt.NDArray[np.int64]] = {}

    def all(self) -> list[float]:
        """As `ContactScores.all`."""
        upto = np.concatenate([[0], np.cumsum(self._counts)])
        before = upto[self._bounds[:-1]]
        pivots = self._percent * (upto[self._bounds[1:]] - before) // 100 + 1
        places = np.searchsorted(upto[1:], before + pivots)
        return [_score(level) for level in self._bins[places].tolist()]

    def of(self, contact: int) -> float:
        """As `ContactScores.of`."""
        upto = self._histogram(contact).cumsum()
        return _score(int(upto.searchsorted(self._percent * int(upto[-1]) // 100 + 1)))

    def add(self, contact: int, to: int) -> None:
        """As `ContactScores.add`."""
        histogram = self._histogram(to)
        histogram += self._histogram(contact)
        self._joined[to] = histogram
        self._joined.pop(contact, None)

    def _histogram(self, contact: int) -> npt.NDArray[np.int64]:
        joined = self._joined.get(contact)
        if joined is not None:
            return joined
        histogram = np.zeros(N_BINS, np.int64)
        own = slice(self._bounds[contact], self._bounds[contact + 1])
        histogram[self._bins[own]] = self._counts[own]
        return histogram


def _score(level: int) -> float:
    return 1 - (level + 0.5) / N_BINS


class _Queue:
    """Contacts by score, in 256 bins; first in, first out within a bin."""

    def __init__(self) -> None:
        self._bins: list[deque[int]] = [deque() for _ in range(N_BINS)]
        self._lowest = N_BINS

    def push(self, contact: int, score: float) -> None:
        place = min(max(int(score * N_BINS), 0), N_BINS - 1)
        self._bins[place].append(contact)
        self._lowest = min(self._lowest, place)

    def first(self) -> int | None:
        while self._lowest < N_BINS and not self._bins[self._lowest]:
            self._lowest += 1
        return self._bins[self._lowest][0] if self._lowest < N_BINS else None

    def pop(self) -> None:
        self._bins[self._lowest].popleft()


class RegionMerging:
    """Regions that become fewer.

    Args:
        graph: contacts of fragments.
        scores: of the contacts.
    """

    def __init__(self, graph: RegionGraph, scores: ContactScores) -> None:
        self._graph, self._statistics = graph, scores
        self._scores = scores.all()
        self._deleted, self._stale = bytearray(len(graph)), bytearray(len(graph))
        self._parents = list(range(graph.n_fragments + 1))
        self._names = list(range(graph.n_fragments + 1))  # waterz: the smaller id stays
        self._contacts: list[dict[int, int]] = [{} for _ in self._parents]
        for contact, (a, b) in enumerate(zip(graph.smaller.tolist(), graph.greater.tolist(), strict=True)):
            self._contacts[a][b] = self._contacts[b][a] = contact
        self._queue = _Queue()
        for contact, score in enumerate(self._scores):
            self._queue.push(contact, score)

    def segments(self, thresholds: Sequence[float]) -> Iterator[npt.NDArray[np.int64]]:
        """Yield for each of ascending thresholds the region of each fragment, as its smallest id; entry 0 is 0."""
        for threshold in thresholds:
            self._merge_until(float(np.float32(threshold)))  # as waterz has it
            yield np.array(self._names)[self._roots()]

    def _merge_until(self, threshold: float) -> None:
        while (contact := self._queue.first()) is not None and self._scores[contact] < threshold:
            self._queue.pop()
            if self._deleted[contact]:
                continue
            if self._stale[contact]:
                self._stale[contact] = 0
                self._scores[contact] = score = self._statistics.of(contact)
                self._queue.push(contact, score)
                continue
            self._join(contact)

    def _join(self, contact: int) -> None:
        a, b = (self._root(int(ids[contact])) for ids in (self._graph.smaller, self._graph.greater))
        a, b = (a, b) if self._names[a] < self._names[b] else (b, a)
        # the one of fewer contacts moves, whichever name stays
        keep, gone = (a, b) if len(self._contacts[a]) >= len(self._contacts[b]) else (b, a)
        kept = self._contacts[keep]
        del kept[gone], self._contacts[gone][keep]
        for neighbour, moved in self._contacts[gone].items():
            around = self._contacts[neighbour]
            del around[gone]
            own = kept.get(neighbour)
            if own is None:
                kept[neighbour] = around[keep] = moved
            else:
                kept[neighbour] = around[keep] = self._added(*((own, moved) if keep == a else (moved, own)))
        self._contacts[gone] = {}
        self._parents[gone], self._names[keep] = keep, self._names[a]

    def _added(self, of_a: int, of_b: int) -> int:
        """Add the dearer of two contacts to the cheaper and return that."""
        is_dearer = self._scores[of_b] > self._scores[of_a]
        stays, goes = (of_a, of_b) if is_dearer else (of_b, of_a)
        self._statistics.add(goes, stays)
        self._deleted[goes], self._stale[stays] = 1, 1
        return stays

    def _root(self, fragment: int) -> int:
        parents = self._parents
        while parents[fragment] != fragment:
            parents[fragment] = parents[parents[fragment]]
            fragment = parents[fragment]
        return fragment

    def _roots(self) -> npt.NDArray[np.int64]:
        roots = np.array(self._parents)
        while (further := roots[roots]).tobytes() != roots.tobytes():
            roots = further
        return roots
