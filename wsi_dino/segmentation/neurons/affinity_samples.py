"""Windows of a training volume with the affinities they must give: voxels, or stacked maps. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_dino.segmentation.feature_stack import Box
from wsi_dino.segmentation.neurons.affinities import Offset, balance_weights, compute_affinities, edges_inside
from wsi_dino.segmentation.neurons.section_maps import SectionMaps
from wsi_dino.segmentation.training import Sample
from wsi_dino.segmentation.views import VIEWS, apply_view


@dataclass(frozen=True)
class TrainingVolume:
    """What is learnt from.

    Attributes:
        grey: uint8 ``(z, y, x)``.
        ids: with widened borders.
        offsets: of the affinities to learn.
    """

    grey: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.uint32]
    offsets: Sequence[Offset]

    def target(self, ids: npt.NDArray[np.uint32]) -> Tensor:
        """Return affinities and weights of a window, float32 ``(2, 1, channels, z, y, x)``."""
        affinities = compute_affinities(ids, self.offsets)
        weights = balance_weights(affinities, edges_inside(ids.shape, self.offsets))
        return torch.from_numpy(np.stack([affinities.astype(np.float32), weights])[:, None])


@dataclass(frozen=True)
class VoxelSamples:
    """Windows of voxels, in any of eight views, upright or not, with other contrast.

    Attributes:
        volume: to learn from.
        size: of a window (z, y, x), at most.
        n_samples: an epoch.
    """

    volume: TrainingVolume
    size: tuple[int, int, int]
    n_samples: int

    def __len__(self) -> int:
        return self.n_samples

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a window anywhere; the number means nothing."""
        box = tuple(_within(n, size, rng) for n, size in zip(self.volume.grey.shape, self.size, strict=True))
        view = VIEWS[rng.integers(len(VIEWS))]
        turn = slice(None, None, -1 if rng.random() < 0.5 else 1)
        grey = apply_view(self.volume.grey[box], view)[turn].astype(np.float32) / 255
        changed = (grey - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.1, 0.1)
        ids = np.ascontiguousarray(apply_view(self.volume.ids[box], view)[turn])
        shown = torch.from_numpy(np.clip(changed, 0, 1).astype(np.float32))
        return Sample((shown[None, None],), self.volume.target(ids))


@dataclass(frozen=True)
class MapSamples:
    """Windows of stacked maps, in the views that were encoded, upright or not.

    Attributes:
        volume: to learn from.
        views: its maps in each view.
        sections, cells: of a window, at most.
        n_samples: an epoch.
        with_grey: whether the decoder sees the image too.
    """

    volume: TrainingVolume
    views: Mapping[str, SectionMaps]
    sections: int
    cells: int
    n_samples: int
    with_grey: bool = False

    def __len__(self) -> int:
        return self.n_samples

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a window anywhere; the number means nothing."""
        view = list(self.views)[rng.integers(len(self.views))]
        maps = self.views[view]
        sides = [(maps.n_slices, self.sections), (maps.geometry.rows, self.cells), (maps.geometry.cols, self.cells)]
        z, rows, cols = (_within(n, size, rng) for n, size in sides)
        crop = maps.crop(Box((z.start, z.stop), (rows.start, rows.stop), (cols.start, cols.stop)))
        is_turned = rng.random() < 0.5
        ids = apply_view(self.volume.ids[z], view)[:, crop.voxels[1], crop.voxels[2]]
        ids = np.ascontiguousarray(ids[::-1] if is_turned else ids)
        inputs: tuple[Any, ...] = (crop.maps, crop.row_positions, crop.col_positions)
        if self.with_grey:
            inputs = (*inputs, grey_tensor(apply_view(self.volume.grey[z], view)[:, crop.voxels[1], crop.voxels[2]]))
        return Sample(_turned(inputs) if is_turned else inputs, self.volume.target(ids))


def grey_tensor(grey: npt.NDArray[np.uint8]) -> Tensor:
    """Return voxels as networks take them, float32 ``(1, 1, z, y, x)`` of 0..1."""
    return torch.from_numpy(grey.astype(np.float32) / 255)[None, None]


def _within(length: int, size: int, rng: np.random.Generator) -> slice:
    size = min(length, size)
    start = int(rng.integers(length - size + 1))
    return slice(start, start + size)


def _turned(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_turned(item) for item in value)
    return value.flip(2) if isinstance(value, Tensor) and value.ndim == 5 else value


def map_statistics(maps: SectionMaps, n_sections: int = 8) -> tuple[list[Tensor], list[Tensor]]:
    """Return mean and standard deviation of each channel of each layer, over sections spread evenly."""
    whole = maps.whole
    moments: list[list[Tensor]] = []
    for z in np.linspace(0, maps.n_slices - 1, min(n_sections, maps.n_slices)).round().astype(int):
        crop = maps.crop(Box((int(z), int(z) + 1), whole.rows, whole.cols))
        flat = [item[0].flatten(1).double() for item in crop.maps]
        moments.append([torch.stack([item.mean(1), (item**2).mean(1)]) for item in flat])
    means = [torch.stack(of_layer).mean(0) for of_layer in zip(*moments, strict=True)]
    return [m[0].float() for m in means], [(m[1] - m[0] ** 2).clamp_min(0).sqrt().float() for m in means]
