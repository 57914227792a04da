"""Crops of stacked maps as training samples: views, flips across slices, foreground found often. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_dino.segmentation.feature_stack import Box, Crop, FeatureStack
from wsi_dino.segmentation.prepared import PreparedCase
from wsi_dino.segmentation.training import Sample
from wsi_dino.segmentation.views import apply_view

_SHARE_OF_FOREGROUND = 0.5


@dataclass(frozen=True)
class StackedCase:
    """A prepared case and its stacked maps, one a view."""

    prepared: PreparedCase
    stacks: dict[str, FeatureStack]


class StackSamples:
    """Samples of a decoder: one crop of each case an epoch.

    A case that fits the crop is taken whole. Else every second crop lies around a foreground voxel. Views of the
    slices come from the cache; the order of slices is turned round for every second sample at no cost.

    Args:
        cases: to learn from.
        crop_slices, crop_cells: largest crop, in slices and in cells of the coarsest map.
        n_views: to learn from, the first of each case's.
        with_grey: whether the decoder takes the image too.
    """

    def __init__(
        self,
        cases: Sequence[StackedCase],
        *,
        crop_slices: int,
        crop_cells: int,
        n_views: int = 8,
        with_grey: bool = False,
    ) -> None:
        self.cases, self.crop_slices, self.crop_cells, self.n_views = list(cases), crop_slices, crop_cells, n_views
        self.with_grey = with_grey

    def __len__(self) -> int:
        return len(self.cases)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return maps, positions of voxels and (with an image skip) grey values; the target are labels."""
        case = self.cases[index]
        views = list(case.stacks)[: self.n_views]
        view = views[rng.integers(len(views))]
        stack = case.stacks[view]
        crop = stack.crop(self._box(case, view, stack, rng))
        labels = torch.from_numpy(_seen(case.prepared.labels(*_slices(crop))[None], view, crop)[0]).long()[None]
        grey = grey_of(case.prepared, view, crop) if self.with_grey else None
        inputs: tuple[Tensor | tuple[Tensor, ...] | None, ...] = (crop.maps, crop.row_positions, crop.col_positions)
        inputs = (*inputs, grey) if self.with_grey else inputs
        return Sample(turned(inputs), labels.flip(1)) if rng.random() < 0.5 else Sample(inputs, labels)

    def _box(self, case: StackedCase, view: str, stack: FeatureStack, rng: np.random.Generator) -> Box:
        whole = stack.whole
        centre = self._centre(case, view, stack, rng)
        return Box(
            _around(centre[0], whole.slices[1], self.crop_slices, rng),
            _around(centre[1], whole.rows[1], self.crop_cells, rng),
            _around(centre[2], whole.cols[1], self.crop_cells, rng),
        )

    def _centre(
        self, case: StackedCase, view: str, stack: FeatureStack, rng: np.random.Generator
    ) -> tuple[int, int, int]:
        """Return a slice and a cell that the crop should hold."""
        whole = stack.whole
        fits = whole.slices[1] <= self.crop_slices and max(whole.rows[1], whole.cols[1]) <= self.crop_cells
        wanted = not fits and rng.random() < _SHARE_OF_FOREGROUND
        foreground = case.prepared.foreground() if wanted else np.zeros((0, 3), np.int32)
        if not len(foreground):
            return tuple(int(rng.integers(side[1])) for side in (whole.slices, whole.rows, whole.cols))  # type: ignore[return-value]
        z, y, x = foreground[rng.integers(len(foreground))]
        marked = np.zeros((1, *case.prepared.shape[1:]), bool)
        marked[0, y, x] = True
        _, row, col = np.argwhere(apply_view(marked, view))[0]
        geometry = stack.geometry
        return int(z), int(geometry.row_positions()[row]), int(geometry.col_positions()[col])


def _slices(crop: Crop) -> tuple[int, int]:
    return crop.voxels[0].start, crop.voxels[0].stop


def _seen(volume: npt.NDArray[np.uint8], view: str, crop: Crop) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(apply_view(volume, view)[..., crop.voxels[1], crop.voxels[2]])


def grey_of(prepared: PreparedCase, view: str, crop: Crop) -> Tensor:
    """Return the image of a crop, float32 ``(1, channels, z, y, x)`` of 0..1."""
    seen = _seen(prepared.grey(*_slices(crop)), view, crop)
    return torch.from_numpy(seen).float().div_(255)[None]


def _around(centre: int, length: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    if length <= size:
        return 0, length
    first, last = max(0, centre - size + 1), min(centre, length - size)
    start = int(rng.integers(first, last + 1))
    return start, start + size


def turned(inputs: Any) -> Any:
    """Return a decoder's inputs with the order of slices turned round."""
    if isinstance(inputs, tuple):
        return tuple(turned(item) for item in inputs)
    return inputs.flip(2) if isinstance(inputs, Tensor) and inputs.ndim == 5 else inputs


def statistics_of(cases: Sequence[StackedCase], n_cases: int = 16) -> tuple[list[Tensor], list[Tensor]]:
    """Return mean and standard deviation of each channel of each layer, over some cases spread evenly."""
    step = max(1, len(cases) // n_cases)
    sums: list[list[Tensor]] = []
    for case in cases[::step][:n_cases]:
        stack = next(iter(case.stacks.values()))
        middle = stack.n_slices // 2
        box = Box((max(0, middle - 16), min(stack.n_slices, middle + 16)), stack.whole.rows, stack.whole.cols)
        sums.append([_moments(item) for item in stack.crop(box).maps])
    moments = [torch.stack(of_layer).mean(0) for of_layer in zip(*sums, strict=True)]
    return [m[0].float() for m in moments], [(m[1] - m[0] ** 2).clamp_min(0).sqrt().float() for m in moments]


def _moments(maps: Tensor) -> Tensor:
    flat = maps[0].flatten(1).double()
    return torch.stack([flat.mean(1), (flat**2).mean(1)])
