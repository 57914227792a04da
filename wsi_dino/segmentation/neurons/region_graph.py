"""Which fragments touch, and with what affinities: counted a section at a time, so that blocks add up to the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import ConfigError

N_BINS = 256
_ID_BITS, _BIN_BITS = 28, 8
_MOST_FRAGMENTS = 2**_ID_BITS - 1
Section = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RegionGraph:
    """Contacts of fragments, each with a histogram of the affinities across it.

    Attributes:
        n_fragments: their ids are 1 .. n_fragments.
        smaller, greater: ids of the two fragments of each contact, ascending; int64 ``(n_contacts,)``.
        bounds: contact ``i`` owns entries ``bounds[i]`` to ``bounds[i + 1]``; int64 ``(n_contacts + 1,)``.
        bins: affinity of an entry, as 0..255; uint8.
        counts: pairs of voxels of an entry; int64.
    """

    n_fragments: int
    smaller: npt.NDArray[np.int64]
    greater: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    bins: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.smaller)


def build_region_graph(sections: Iterable[Section]) -> RegionGraph:
    """Return the contacts of a volume that comes a section at a time.

    Only two sections are in memory, and what was counted: an entry for each contact and affinity that occurs.

    Args:
        sections: in order, each affinities ``(3, y, x)``, uint8 or float32 0..1, and fragments ``(y, x)`` from id 1.

    Raises:
        ConfigError: there is no section, or there are too many fragments.
    """
    counted: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]] = []
    before: np.ndarray | None = None
    n_fragments = 0
    for affinities, fragments in sections:
        ids = fragments.astype(np.uint64)
        n_fragments = max(n_fragments, int(ids.max()))
        if not ids.all() or n_fragments > _MOST_FRAGMENTS:
            raise ConfigError(f"Joining fragments: ids must be 1 .. {_MOST_FRAGMENTS}, got {ids.min()} to {ids.max()}.")
        counted.append(_counted(np.sort(_contacts(_as_bins(affinities), ids, before))))
        before = ids
    if before is None:
        raise ConfigError("Joining fragments: there is no section.")
    return _grouped(n_fragments, *_added(counted))


def _as_bins(affinities: np.ndarray) -> npt.NDArray[np.uint8]:
    if affinities.dtype == np.uint8:
        return affinities
    scaled = np.clip(np.nan_to_num(affinities).astype(np.float32) * np.float32(N_BINS), 0, N_BINS - 1)
    return scaled.astype(np.uint8)


def _contacts(
    bins: npt.NDArray[np.uint8], ids: npt.NDArray[np.uint64], before: npt.NDArray[np.uint64] | None
) -> npt.NDArray[np.uint64]:
    """Return a key of smaller id, greater id and affinity for each pair of neighbours in different fragments."""
    pairs = [(ids[1:], ids[:-1], bins[1, 1:]), (ids[:, 1:], ids[:, :-1], bins[2, :, 1:])]
    if before is not None:
        pairs.append((ids, before, bins[0]))
    keys = []
    for here, there, affinity in pairs:
        differ = here != there
        a, b = here[differ], there[differ]
        smaller, greater = np.minimum(a, b), np.maximum(a, b)
        keys.append(smaller << (_ID_BITS + _BIN_BITS) | greater << _BIN_BITS | affinity[differ])
    return np.concatenate(keys)


def _counted(keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    starts = _run_starts(keys)
    return keys[starts], np.diff(starts, append=len(keys))


def _run_starts(ordered: np.ndarray) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def _added(
    counted: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    keys = np.concatenate([keys for keys, _ in counted])
    counts = np.concatenate([counts for _, counts in counted])
    counted.clear()
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = _run_starts(keys)
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _grouped(n_fragments: int, keys: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]) -> RegionGraph:
    pairs = keys >> np.uint64(_BIN_BITS)
    starts = _run_starts(pairs)
    first = pairs[starts]
    mask = np.uint64(_MOST_FRAGMENTS)
    return RegionGraph(
        n_fragments, (first >> np.uint64(_ID_BITS)).astype(np.int64), (first & mask).astype(np.int64),
        np.append(starts, len(keys)), (keys & np.uint64(N_BINS - 1)).astype(np.uint8), counts,
    )  # fmt: skip
