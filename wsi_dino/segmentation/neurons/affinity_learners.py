"""The two ways to affinities: a decoder of a frozen encoder's maps, or a network of voxels. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wsi_dino.provenance import fingerprint
from wsi_dino.segmentation.decoders import StackDecoder, make_decoder, steps_up
from wsi_dino.segmentation.feature_maps import SliceEncoder
from wsi_dino.segmentation.feature_stack import Box, window_boxes
from wsi_dino.segmentation.neurons.affinities import LONG_RANGE, NEAREST, Offset
from wsi_dino.segmentation.neurons.affinity_samples import (
    MapSamples,
    TrainingVolume,
    VoxelSamples,
    grey_tensor,
    map_statistics,
)
from wsi_dino.segmentation.neurons.blending import Window, voxel_boxes
from wsi_dino.segmentation.neurons.layout import EmLayout
from wsi_dino.segmentation.neurons.request import AffinitySpec, EmRequest
from wsi_dino.segmentation.neurons.residual_unet import WIDTHS, ResidualUNet
from wsi_dino.segmentation.neurons.section_maps import SectionMaps, TilePlan, encode_volume, plan_tiles
from wsi_dino.segmentation.training import SampleSource, autocast, moved
from wsi_dino.segmentation.views import VIEWS

_OVERLAP = 0.5
_EPOCH_STEPS = 50
N_KEPT = len(NEAREST)


class AffinityLearner(Protocol):
    """A way to affinities."""

    def identity(self) -> Any:
        """Return what decides the answer beside spec, training volume and seed."""

    def facts(self) -> dict[str, Any]:
        """Return what a reader should know of it."""

    def prepare(self, grey: npt.NDArray[np.uint8], subset: str, source: str) -> None:
        """Make what windows of a subset need; `source` is the fingerprint of its voxels."""

    def n_preparations(self, n_sections: int, subset: str) -> int:
        """Return how many steps `prepare` reports."""

    def network(self) -> nn.Module:
        """Return a network with fresh weights; the subset ``train`` is prepared."""

    def samples(self, volume: TrainingVolume) -> SampleSource:
        """Return what it learns from."""

    def windows(
        self, network: nn.Module, grey: npt.NDArray[np.uint8], subset: str, device: str, precision: str
    ) -> list[Window]:
        """Return windows that cover a prepared subset and answer with the affinities of neighbours."""


def offsets_of(spec: AffinitySpec) -> tuple[Offset, ...]:
    """Return how far back each learnt channel looks."""
    return LONG_RANGE if spec.long_range else NEAREST


def epoch_steps(spec: AffinitySpec) -> int:
    """Return how many steps lie between two times that a training is kept."""
    return min(_EPOCH_STEPS, spec.steps)


def make_learner(request: EmRequest, layout: EmLayout, advance: Callable[[], None]) -> AffinityLearner:
    """Return the learner that was asked for.

    Raises:
        EncoderError: the encoder is not to be had.
        ConfigError: it does not take this size.
    """
    if request.is_supervised:
        return VoxelLearner(request.affinities)
    encoder = SliceEncoder(
        request.encoder, request.affinities.layers, device=request.device, workers=request.workers,
        **request.encoder_settings,
    )  # fmt: skip
    plan = plan_tiles(encoder, upscale=request.affinities.upscale, tile_px=request.affinities.tile_px)
    return MapLearner(request.affinities, layout, encoder, plan, advance)


@dataclass(frozen=True)
class VoxelLearner:
    """The supervised baseline."""

    spec: AffinitySpec

    def identity(self) -> Any:
        """As `AffinityLearner.identity`."""
        return ["residual-unet, norms of instances", list(WIDTHS)]

    def facts(self) -> dict[str, Any]:
        """As `AffinityLearner.facts`."""
        return {"network": "residual symmetric 3D U-Net", "widths": list(WIDTHS)}

    def prepare(self, grey: npt.NDArray[np.uint8], subset: str, source: str) -> None:
        """Do nothing."""

    def n_preparations(self, n_sections: int, subset: str) -> int:
        """Return 0."""
        return 0

    def network(self) -> nn.Module:
        """As `AffinityLearner.network`."""
        return ResidualUNet(len(offsets_of(self.spec)))

    def samples(self, volume: TrainingVolume) -> SampleSource:
        """As `AffinityLearner.samples`."""
        return VoxelSamples(volume, self._size, epoch_steps(self.spec))

    @property
    def _size(self) -> tuple[int, int, int]:
        return self.spec.window_sections, self.spec.window_voxels, self.spec.window_voxels

    def windows(
        self, network: nn.Module, grey: npt.NDArray[np.uint8], subset: str, device: str, precision: str
    ) -> list[Window]:
        """As `AffinityLearner.windows`."""

        def answer(box: tuple[slice, slice, slice]) -> Callable[[], npt.NDArray[np.float32]]:
            return lambda: _answered(network, (grey_tensor(grey[box]),), device, precision)

        return [Window(box, answer(box)) for box in voxel_boxes(grey.shape, self._size, _OVERLAP)]


@dataclass
class MapLearner:
    """A decoder of the maps that a frozen encoder gives for each section."""

    spec: AffinitySpec
    layout: EmLayout
    encoder: SliceEncoder
    plan: TilePlan
    advance: Callable[[], None]

    def __post_init__(self) -> None:
        self._maps: dict[str, dict[str, SectionMaps]] = {}
        self._identity = self.encoder.identity()

    def identity(self) -> Any:
        """As `AffinityLearner.identity`."""
        return [self._identity, self.plan.upscale, self.plan.tile_px, [vars(layer) for layer in self.plan.layers]]

    @property
    def key(self) -> str:
        """Name of the folder of maps."""
        return f"{self.encoder.name}@x{self.plan.upscale}-{fingerprint(self.identity())[:8]}"

    def facts(self) -> dict[str, Any]:
        """As `AffinityLearner.facts`."""
        return {
            "encoder": self.encoder.name,
            "layers": list(self.encoder.layer_numbers),
            "cell_voxels": [layer.stride_px / self.plan.upscale for layer in self.plan.layers],
            "upscale": self.plan.upscale,
            "tile_px": self.plan.tile_px,
        }

    def _views(self, subset: str) -> tuple[str, ...]:
        return VIEWS[: self.spec.n_views if subset == "train" else 1]

    def n_preparations(self, n_sections: int, subset: str) -> int:
        """As `AffinityLearner.n_preparations`."""
        return n_sections * len(self._views(subset))

    def prepare(self, grey: npt.NDArray[np.uint8], subset: str, source: str) -> None:
        """As `AffinityLearner.prepare`."""
        self._maps[subset] = {
            view: encode_volume(
                self.layout.run, f"em-maps/{self.layout.dataset}/{self.key}/{subset}/{view}",
                self.layout.maps(self.key, subset, view), grey, view, self.encoder, self.plan,
                source=fingerprint(source, self.identity()), advance=self.advance,
            )
            for view in self._views(subset)
        }  # fmt: skip

    def maps(self, subset: str) -> SectionMaps:
        """Return the maps of a prepared subset as it is."""
        return self._maps[subset]["as-is"]

    def network(self) -> nn.Module:
        """As `AffinityLearner.network`; features are standardised as in the training volume."""
        coarsest = max(layer.stride_px for layer in self.plan.layers)
        n_up = steps_up(1.0, self.plan.upscale, coarsest, 1.0)
        n_outputs = len(offsets_of(self.spec))
        network = make_decoder(self.spec.decoder, self.plan.layers, n_outputs, n_up, int(self.spec.image_skip))
        assert isinstance(network, StackDecoder)
        network.set_statistics(*map_statistics(self.maps("train")))
        return network

    @property
    def _cells(self) -> int:
        least = 2 if self.spec.window_sections == 1 else 1  # a norm over one cell alone has no deviation
        return max(least, round(self.spec.window_voxels * self.plan.upscale / self.plan.cell_px))

    def samples(self, volume: TrainingVolume) -> SampleSource:
        """As `AffinityLearner.samples`."""
        spec = self.spec
        return MapSamples(
            volume, self._maps["train"], spec.window_sections, self._cells, epoch_steps(spec), spec.image_skip
        )  # fmt: skip

    def windows(
        self, network: nn.Module, grey: npt.NDArray[np.uint8], subset: str, device: str, precision: str
    ) -> list[Window]:
        """As `AffinityLearner.windows`."""
        maps = self.maps(subset)

        def answer(box: Box) -> Callable[[], npt.NDArray[np.float32]]:
            def compute() -> npt.NDArray[np.float32]:
                crop = maps.crop(box)
                inputs: tuple[Any, ...] = (crop.maps, crop.row_positions, crop.col_positions)
                inputs = (*inputs, grey_tensor(grey[crop.voxels])) if self.spec.image_skip else inputs
                return _answered(network, inputs, device, precision)

            return compute

        boxes = window_boxes(maps.whole, self.spec.window_sections, self._cells, _OVERLAP)
        return [Window(maps.voxels(box), answer(box)) for box in boxes]


def _answered(network: nn.Module, inputs: Any, device: str, precision: str) -> npt.NDArray[np.float32]:
    with torch.inference_mode(), autocast(device, precision):
        logits = network(*moved(inputs, device))
    kept: npt.NDArray[np.float32] = torch.sigmoid(logits.float())[0, :N_KEPT].cpu().numpy()
    return kept
