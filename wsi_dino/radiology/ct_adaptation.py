"""Slices of volumes to learn an adapter from: some of each volume, spread over its height. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsi_dino.encoders.adapt import Bag
from wsi_dino.encoders.read_ahead import read_ahead
from wsi_dino.errors import VolumeError
from wsi_dino.provenance import fingerprint
from wsi_dino.radiology.adaptation import HeadPool
from wsi_dino.radiology.ct_features import Pool
from wsi_dino.radiology.ct_slices import SliceSpec, slice_images
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.volumes.reading import open_volume

DEFAULT_SLICES = 16


@dataclass(frozen=True)
class VolumeBags:
    """A bag is some slices of one volume; their vectors are pooled as in judging and have the volume's labels.

    Attributes:
        volumes: by row.
        spec: what a slice shows.
        input_px, interpolation: of the encoder.
        pool: of the judging; attention, which has weights of its own, is learnt after the mean.
        n_slices: of a volume and epoch.
    """

    volumes: Sequence[VolumeRow]
    spec: SliceSpec
    input_px: int
    interpolation: str
    pool: Pool
    n_slices: int = DEFAULT_SLICES

    @property
    def head_pool(self) -> HeadPool:
        """As in judging; the mean for attention."""
        return "mean" if self.pool == "attention" else self.pool

    @property
    def recipe(self) -> dict[str, Any]:
        """How slices are chosen, and what they show."""
        return {
            "slices_of_a_volume": self.n_slices,
            "slices_chosen": "one of each of so many stretches of equal height, drawn anew each epoch; the middle ones "
            "for validation; all slices in judging",
            "slices_pooled_in_learning": self.head_pool,
            "slice_view": self.spec.model_dump(mode="json"),
        }

    def bags(self, rows: Sequence[int], targets: np.ndarray, seed: int | None) -> Iterator[Bag]:
        """Yield slices of each volume, volumes and slices drawn by `seed`, or the same each time."""
        order = np.asarray(rows, np.int64)
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        for (row, _), images in read_ahead(self._read, [(row, seed) for row in order.tolist()], threads=2, ahead=3):
            yield Bag(images, targets[[row]], float((~np.isnan(targets[row])).sum()))

    def _read(self, wanted: tuple[int, int | None]) -> np.ndarray:
        row, seed = self.volumes[wanted[0]], wanted[1]
        try:
            volume = open_volume(row.path, rescale=row.rescale, spacing_mm=row.spacing_mm, hu=self.spec.hu)
        except VolumeError as error:
            raise VolumeError(f"Adapting the encoder on {row.volume_id}: {error}") from error
        mark = None if seed is None else int(fingerprint(seed, row.volume_id)[:8], 16)
        chosen = draw_slices(len(volume), self.n_slices, mark)
        few = replace(volume, voxels=volume.voxels[chosen])
        return next(slice_images(few, self.spec, self.input_px, self.interpolation, len(chosen)))


def draw_slices(n: int, wanted: int, seed: int | None) -> list[int]:
    """Return up to `wanted` of `n` slices, one of each of so many equal stretches: drawn, or the middle ones.

    Examples:
        >>> draw_slices(12, 3, None), draw_slices(2, 16, 7)
        ([2, 6, 10], [0, 1])
    """
    if n <= wanted:
        return list(range(n))
    edges = np.arange(wanted + 1) * n // wanted
    if seed is None:
        return [int(index) for index in (edges[:-1] + edges[1:]) // 2]
    return [int(index) for index in np.random.default_rng(seed).integers(edges[:-1], edges[1:])]
