"""Answers of overlapping windows blended into a volume, of which only a slab is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.feature_stack import window_starts
from wsi_dino.segmentation.sliding_window import gaussian

Voxels = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Window:
    """A box of voxels, and what answers for it with float32 ``(channels, z, y, x)``."""

    voxels: Voxels
    answer: Callable[[], npt.NDArray[np.float32]]


def blend(
    shape: Sequence[int],
    n_channels: int,
    windows: Iterable[Window],
    emit: Callable[[int, npt.NDArray[np.float32]], None],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Blend windows, weighted by a Gaussian around their middle, and hand on sections as soon as they are final.

    Windows are taken in the order of their first section, so that no more than the depth of a window is kept: the
    result is that of a volume held whole, to the last bit.

    Args:
        shape: of the volume (z, y, x).
        n_channels: of the answers.
        windows: that cover it.
        emit: takes the number of the first section and ``(channels, n, y, x)``.
        advance: called after each window.
    """
    ordered = sorted(windows, key=lambda window: window.voxels[0].start)
    depth = max(window.voxels[0].stop - window.voxels[0].start for window in ordered)
    slab = _Slab(shape, n_channels, depth, emit)
    for window in ordered:
        slab.move_to(window.voxels[0].start)
        slab.add(window.voxels, window.answer())
        advance()
    slab.move_to(shape[0])


class _Slab:
    """Sums and weights of the sections that windows still come for."""

    def __init__(
        self, shape: Sequence[int], n_channels: int, depth: int, emit: Callable[[int, npt.NDArray[np.float32]], None]
    ) -> None:
        self._total = np.zeros((n_channels, depth, *shape[1:]), np.float32)
        self._weight = np.zeros((depth, *shape[1:]), np.float32)
        self._first, self._emit = 0, emit

    def move_to(self, first: int) -> None:
        n_final = first - self._first
        if n_final == 0:
            return
        self._emit(self._first, self._total[:, :n_final] / self._weight[:n_final])
        n_kept = self._weight.shape[0] - n_final
        self._total[:, :n_kept] = self._total[:, n_final:].copy()
        self._weight[:n_kept] = self._weight[n_final:].copy()
        self._total[:, n_kept:], self._weight[n_kept:] = 0, 0
        self._first = first

    def add(self, voxels: Voxels, answer: npt.NDArray[np.float32]) -> None:
        weight = gaussian(answer.shape[1:])
        z = slice(voxels[0].start - self._first, voxels[0].stop - self._first)
        self._total[(slice(None), z, *voxels[1:])] += answer * weight
        self._weight[(z, *voxels[1:])] += weight


def voxel_boxes(shape: Sequence[int], size: Sequence[int], overlap: float = 0.5) -> list[Voxels]:
    """Return boxes of at most `size` that cover a volume and overlap by at least `overlap`.

    Examples:
        >>> voxel_boxes((4, 2, 2), (2, 2, 2), 0.0)[1]
        (slice(2, 4, None), slice(0, 2, None), slice(0, 2, None))
    """
    sizes = [min(length, wanted) for length, wanted in zip(shape, size, strict=True)]
    starts = [window_starts(length, wanted, overlap) for length, wanted in zip(shape, size, strict=True)]
    return [
        (slice(z, z + sizes[0]), slice(y, y + sizes[1]), slice(x, x + sizes[2]))
        for z in starts[0] for y in starts[1] for x in starts[2]
    ]  # fmt: skip
