"""A trained decoder or network on disk: weights, and all that must be known to use them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from wsi_dino.model_file import fill_network, read_model_facts

if TYPE_CHECKING:
    from torch import nn

_FORMAT = "wsi_dino.segmentation/1"


class SegmentationModel(BaseModel):
    """What must be known to use a trained model.

    Attributes:
        kind: ``"decoder"`` of a frozen encoder's maps, or the name of a network of voxels.
        dataset: it learned from.
        classes: label values above 0 and their names.
        channels: name, modality and window of each.
        encoder: name; `identity` what decides its maps, {} for a network.
        layers: channels and stride of each, as stacked.
        meeting: of channels.
        patch_mm, patch_px, cell_px: how slices are shown.
        decoder: name; `n_up` its steps of two; `image_skip` whether it takes the image; `is_light` see
            `decoders.ConvDecoder`, False in files of earlier versions.
        n_views: of slices that it learned from, the first of `views.VIEWS`; 0 where an earlier version did not say.
        window_slices, window_cells: what it is given at once (voxels for a network).
        fold: whose training cases it learned from.
        training: recipe and precision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = _FORMAT
    kind: str = "decoder"
    dataset: str
    classes: dict[int, str]
    channels: tuple[dict[str, Any], ...]
    encoder: str = ""
    identity: dict[str, Any] = {}
    layers: tuple[tuple[int, int], ...] = ()
    meeting: str = "early"
    patch_mm: float = 0.0
    patch_px: int = 0
    cell_px: int = 0
    decoder: str = ""
    n_up: int = 0
    image_skip: bool = False
    is_light: bool = False
    n_views: int = 0
    window_slices: int
    window_cells: int
    fold: int
    training: dict[str, Any] = {}

    @property
    def label_values(self) -> list[int]:
        """Label of each output channel, background first."""
        return [0, *self.classes]


def read_facts(path: Path) -> SegmentationModel:
    """Read what is known of a model without its weights.

    Raises:
        WeightsError: the file is missing, broken, or no model of this kind.
    """
    return read_model_facts(path, SegmentationModel, written_by="wsi-dino radiology segment")


def read_network(path: Path, facts: SegmentationModel) -> nn.Module:
    """Return the network with its weights, on the CPU and in eval mode.

    Raises:
        WeightsError: weights do not fit the facts.
    """
    from wsi_dino.segmentation.building import build_network

    return fill_network(path, build_network(facts))
