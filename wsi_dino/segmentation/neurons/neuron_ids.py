"""Neuron ids as files have them, made small: 0 = no neuron, 1 .. n in order of appearance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import VolumeError
from wsi_dino.segmentation.neurons.array_file import ArrayFile

# CREMI: no neuron, and invalid; both count as none
_NONE = np.array([2**64 - 1, 2**64 - 2], np.uint64)
_CAST_MARK = 2**32 - 2  # what a cast to uint32 leaves of the second


class IdTable:
    """Numbers ids in order of appearance, over as many blocks as a volume has.

    Args:
        called: where the ids come from, for messages.
    """

    def __init__(self, called: str) -> None:
        self.called = called
        self._known = np.zeros(0, np.uint64)
        self._numbers = np.zeros(0, np.uint32)

    def __len__(self) -> int:
        return len(self._known)

    def numbered(self, block: np.ndarray) -> npt.NDArray[np.uint32]:
        """Return the block with its ids numbered, uint32; 0, 2**64 - 1 and 2**64 - 2 become 0.

        Raises:
            VolumeError: ids are no whole numbers, or were damaged by a narrower type.
        """
        ids, places = np.unique(_as_uint64(block, self.called), return_inverse=True)
        is_none = (ids == 0) | np.isin(ids, _NONE)
        self._learn(ids[~is_none & ~np.isin(ids, self._known)])
        numbers = np.zeros(len(ids), np.uint32)
        numbers[~is_none] = self._numbers[np.searchsorted(self._known, ids[~is_none])]
        return numbers[places.reshape(block.shape)]

    def _learn(self, fresh: npt.NDArray[np.uint64]) -> None:
        numbers = np.arange(len(self._known) + 1, len(self._known) + 1 + len(fresh), dtype=np.uint32)
        known = np.concatenate([self._known, fresh])
        order = np.argsort(known, kind="stable")
        self._known, self._numbers = known[order], np.concatenate([self._numbers, numbers])[order]


def _as_uint64(block: np.ndarray, called: str) -> npt.NDArray[np.uint64]:
    kind = block.dtype.kind
    if kind == "u" and block.dtype.itemsize == 4 and block.max(initial=0) >= _CAST_MARK:
        raise VolumeError(
            f"Reading the ids {called}: they are {block.dtype} and go up to {block.max()}, which a cast makes of "
            "2^64 - 1, no neuron. Take the original file, or one in which 0 stands for no neuron."
        )
    if kind in ("u", "b"):
        return block.astype(np.uint64, copy=False)
    if kind == "i":
        lowest = int(block.min(initial=0))
        if lowest < 0 and not (block.dtype.itemsize == 8 and lowest >= -2):
            raise VolumeError(
                f"Reading the ids {called}: they are {block.dtype} and go down to {lowest}: a cast from uint64 lost "
                "ids. Take the original file, or one saved as uint64."
            )
        return block.astype(np.uint64, copy=False)  # -1 and -2 wrap to CREMI's marks
    if kind == "f" and np.isfinite(block).all() and (block == np.rint(block)).all() and block.min(initial=0) >= 0:
        limit = 2 ** (np.finfo(block.dtype).nmant + 1)
        if block.max(initial=0) <= limit:
            return block.astype(np.uint64)
        raise VolumeError(
            f"Reading the ids {called}: {block.dtype} holds whole numbers to {limit} only, but they go to "
            f"{block.max():.0f}: ids were lost. Take a file saved as whole numbers."
        )
    raise VolumeError(f"Reading the ids {called}: expected whole numbers from 0, got {block.dtype} with others.")


def read_ids(file: ArrayFile, start: int, stop: int) -> npt.NDArray[np.uint32]:
    """Read sections ``start`` to ``stop`` of a label volume, numbered; a section in memory at a time.

    Raises:
        VolumeError: there is no neuron in them, or see `IdTable.numbered`.
    """
    table = IdTable(file.called)
    out = np.empty((stop - start, *file.shape[1:]), np.uint32)
    for i in range(start, stop):
        out[i - start] = table.numbered(file.read_sections(i, i + 1)[0])
    if not len(table):
        raise VolumeError(f"Reading the ids {file.called}: sections {start} to {stop - 1} hold no neuron at all.")
    if len(table) == 1 and out.all():
        raise VolumeError(f"Reading the ids {file.called}: all of sections {start} to {stop - 1} is one neuron.")
    return out
