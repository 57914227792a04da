"""A network of MONAI in the same cross-validation, from the same grey values. Imports torch and MONAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wsi_dino.segmentation.building import build_network
from wsi_dino.segmentation.learners import Probabilities
from wsi_dino.segmentation.model_file import SegmentationModel
from wsi_dino.segmentation.monai_networks import MULTIPLES
from wsi_dino.segmentation.prepared import PreparedCase
from wsi_dino.segmentation.request import SegmentRequest
from wsi_dino.segmentation.training import Sample, SampleSource, autocast

_LARGEST_WINDOW = 96
_SHARE_OF_FOREGROUND = 0.5
_OVERLAP = 0.5


@dataclass(frozen=True)
class MonaiLearner:
    """A network that learns from voxels; see `learners.Learner`.

    Attributes:
        request: what was asked.
        base: facts that all folds share.
        cases: prepared.
    """

    request: SegmentRequest
    base: Mapping[str, Any]
    cases: Mapping[str, PreparedCase]

    @property
    def window(self) -> tuple[int, int, int]:
        """The largest crop (z, y, x): the largest case, or 96 voxels a side."""
        multiple = MULTIPLES[self.request.encoder]
        slices = max(case.shape[0] for case in self.cases.values())
        side = max(max(case.shape[1:]) for case in self.cases.values())
        z, yx = (min(_LARGEST_WINDOW, -(-size // multiple) * multiple) for size in (slices, side))
        return z, yx, yx

    def facts(self, fold: int) -> SegmentationModel:
        """As `Learner.facts`."""
        slices, side, _ = self.window
        return SegmentationModel(
            **self.base, kind=self.request.encoder, fold=fold, window_slices=slices, window_cells=side
        )

    def identity(self) -> Any:
        """As `Learner.identity`."""
        return "voxels"

    def depths(self) -> set[int]:
        """As `Learner.depths`; at each level half as many as above it."""
        multiple = MULTIPLES[self.request.encoder]
        seen = {min(self.window[0], -(-case.shape[0] // multiple) * multiple) for case in self.cases.values()}
        return {slices >> level for slices in seen for level in range(multiple.bit_length())}

    def network(self, facts: SegmentationModel, train: Sequence[str]) -> nn.Module:
        """As `Learner.network`."""
        return build_network(facts)

    def samples(self, train: Sequence[str]) -> SampleSource:
        """As `Learner.samples`."""
        return VoxelSamples([self.cases[case_id] for case_id in train], self.window)

    def probabilities(self, network: nn.Module, case_id: str, *, device: str, precision: str) -> Probabilities:
        """As `Learner.probabilities`, with MONAI's sliding window."""
        grey = torch.from_numpy(self.cases[case_id].grey()).float().div_(255)[None]
        return network_probabilities(network, grey, self.window, device=device, precision=precision)


def network_probabilities(
    network: nn.Module, grey: Tensor, window: tuple[int, int, int], *, device: str, precision: str
) -> Probabilities:
    """Return class probabilities, float32 ``(outputs, z, y, x)``, of grey values 0..1 ``(1, channels, z, y, x)``."""
    from monai.inferers.utils import sliding_window_inference

    with torch.inference_mode(), autocast(device, precision):
        fits = all(side <= most for side, most in zip(grey.shape[2:], window, strict=True))
        if fits:
            logits = network(grey.to(device))
        else:
            logits = sliding_window_inference(grey.to(device), window, 1, network, overlap=_OVERLAP, mode="gaussian")
    chances: Probabilities = logits.float().softmax(1)[0].cpu().numpy()
    return chances


class VoxelSamples:
    """Crops of grey values and labels: flips along every axis and quarter turns in plane."""

    def __init__(self, cases: Sequence[PreparedCase], window: tuple[int, int, int]) -> None:
        self.cases, self.window = list(cases), window

    def __len__(self) -> int:
        return len(self.cases)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Return grey values; the target are labels."""
        case = self.cases[index]
        z, y, x = self._box(case, rng)
        grey = case.grey(z.start, z.stop)[:, :, y, x]
        labels = case.labels(z.start, z.stop)[:, y, x]
        joined = np.concatenate([grey, labels[None]])
        joined = np.rot90(joined, int(rng.integers(4)), (2, 3))
        for axis in (1, 2, 3):
            joined = np.flip(joined, axis) if rng.random() < 0.5 else joined
        joined = np.ascontiguousarray(joined)
        image = torch.from_numpy(joined[:-1]).float().div_(255)[None]
        return Sample((image,), torch.from_numpy(joined[-1]).long()[None])

    def _box(self, case: PreparedCase, rng: np.random.Generator) -> tuple[slice, slice, slice]:
        fits = all(side <= most for side, most in zip(case.shape, self.window, strict=True))
        if fits:
            return slice(0, case.shape[0]), slice(0, case.shape[1]), slice(0, case.shape[2])
        foreground = case.foreground() if rng.random() < _SHARE_OF_FOREGROUND else np.zeros((0, 3), np.int32)
        centre = foreground[rng.integers(len(foreground))] if len(foreground) else rng.integers(case.shape)
        starts = [
            int(np.clip(c - rng.integers(size), 0, max(0, side - size)))
            for c, side, size in zip(centre, case.shape, self.window, strict=True)
        ]
        z, y, x = (slice(a, a + size) for a, size in zip(starts, self.window, strict=True))
        return z, y, x
