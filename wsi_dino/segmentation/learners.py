"""What cross-validation asks of a way to segment: train on cases, answer for a case. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from wsi_dino.segmentation.building import build_network
from wsi_dino.segmentation.decoders import StackDecoder, steps_up
from wsi_dino.segmentation.encoding import FeaturePlan
from wsi_dino.segmentation.feature_maps import SliceEncoder
from wsi_dino.segmentation.feature_stack import Crop
from wsi_dino.segmentation.model_file import SegmentationModel
from wsi_dino.segmentation.request import SegmentRequest
from wsi_dino.segmentation.sliding_window import added, predict_volume
from wsi_dino.segmentation.stack_samples import StackedCase, StackSamples, grey_of, statistics_of, turned
from wsi_dino.segmentation.training import SampleSource, autocast, moved
from wsi_dino.segmentation.views import VIEWS, undo_view

Probabilities = npt.NDArray[np.float32]


class Learner(Protocol):
    """A way to segment."""

    def facts(self, fold: int) -> SegmentationModel:
        """Return what a model of a fold is, apart from its weights."""

    def identity(self) -> Any:
        """Return what decides a result beside `facts`, cases and training, for fingerprints."""

    def depths(self) -> set[int]:
        """Return the numbers of slices that 3D convolutions see while it learns."""

    def network(self, facts: SegmentationModel, train: Sequence[str]) -> nn.Module:
        """Return a network with fresh weights for these training cases."""

    def samples(self, train: Sequence[str]) -> SampleSource:
        """Return what it learns from."""

    def probabilities(self, network: nn.Module, case_id: str, *, device: str, precision: str) -> Probabilities:
        """Return float32 ``(outputs, z, y, x)`` that sum to 1."""


@dataclass(frozen=True)
class DecoderLearner:
    """A decoder of a frozen encoder's stacked maps.

    Attributes:
        request: what was asked.
        encoder: of slices.
        plan: of the features.
        base: facts that all folds share.
        cases: with their stacks.
    """

    request: SegmentRequest
    encoder: SliceEncoder
    plan: FeaturePlan
    base: Mapping[str, Any]
    cases: Mapping[str, StackedCase]

    def facts(self, fold: int) -> SegmentationModel:
        """As `Learner.facts`."""
        plan, decoder = self.plan, self.request.decoder
        coarsest = max(layer.stride_px for layer in plan.layers)
        return SegmentationModel(
            **self.base,
            fold=fold,
            encoder=plan.encoder,
            identity=dict(plan.identity),
            layers=tuple((layer.channels, layer.stride_px) for layer in plan.layers),
            meeting=plan.meeting,
            patch_mm=plan.patch_mm,
            patch_px=plan.patch_px,
            cell_px=plan.cell_px,
            decoder=decoder.name,
            n_up=steps_up(plan.patch_mm, plan.patch_px, coarsest, plan.spacing_mm),
            image_skip=decoder.image_skip,
            is_light=decoder.name == "conv3d",
            n_views=self.request.features.n_views,
            window_slices=decoder.crop_slices,
            window_cells=decoder.crop_cells,
        )

    def identity(self) -> Any:
        """As `Learner.identity`."""
        return self.plan.fingerprint

    def depths(self) -> set[int]:
        """As `Learner.depths`; decoders keep the slices as they are."""
        most = self.request.decoder.crop_slices
        return {min(most, case.prepared.shape[0]) for case in self.cases.values()}

    def network(self, facts: SegmentationModel, train: Sequence[str]) -> nn.Module:
        """As `Learner.network`; mean and deviation of features are taken from the training cases."""
        network = build_network(facts)
        assert isinstance(network, StackDecoder)
        network.set_statistics(*statistics_of([self.cases[case_id] for case_id in train]))
        return network

    def samples(self, train: Sequence[str]) -> SampleSource:
        """As `Learner.samples`."""
        decoder = self.request.decoder
        return StackSamples(
            [self.cases[case_id] for case_id in train],
            crop_slices=decoder.crop_slices,
            crop_cells=decoder.crop_cells,
            n_views=self.request.features.n_views,
            with_grey=decoder.image_skip,
        )

    def probabilities(self, network: nn.Module, case_id: str, *, device: str, precision: str) -> Probabilities:
        """As `Learner.probabilities`."""
        views = VIEWS[: self.request.features.n_test_views]
        return mean_of_views(network, self.facts(0), self.cases[case_id], views, device=device, precision=precision)


def mean_of_views(
    network: nn.Module,
    facts: SegmentationModel,
    case: StackedCase,
    views: Sequence[str],
    *,
    device: str,
    precision: str,
) -> Probabilities:
    """Return the class probabilities of a case, averaged over `views` of its slices."""
    total: Probabilities | None = None
    for view in views:
        answer = _stack_answer(network, facts, case, view, device=device, precision=precision)
        found = predict_volume(
            case.stacks[view],
            answer,
            n_outputs=len(facts.label_values),
            window_slices=facts.window_slices,
            window_cells=facts.window_cells,
        )
        total = added(total, undo_view(found, view))
    assert total is not None
    total /= len(views)
    return total


def _stack_answer(
    network: nn.Module, facts: SegmentationModel, case: StackedCase, view: str, *, device: str, precision: str
) -> Callable[[Crop], Any]:
    """Return what gives the class probabilities of a crop of a case in a view.

    Training turns the order of slices round for every second sample, so both orders are asked and averaged; a linear
    decoder does not look across slices.
    """
    orders = (False,) if facts.decoder == "linear" else (False, True)

    def answer(crop: Crop) -> Any:
        inputs: tuple[Any, ...] = (crop.maps, crop.row_positions, crop.col_positions)
        if facts.image_skip:
            inputs = (*inputs, grey_of(case.prepared, view, crop))
        inputs = moved(inputs, device)
        found = []
        for is_turned in orders:
            with autocast(device, precision):
                logits = network(*(turned(inputs) if is_turned else inputs))
            chances = logits.float().softmax(1)
            found.append(chances.flip(2) if is_turned else chances)
        return sum(found) / len(found)

    return answer
