"""A trained decoder or network on disk: weights, and all that must be known to use them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_dino.errors import WeightsError
from wsi_dino.provenance import write_atomically, write_json_atomically

if TYPE_CHECKING:
    from torch import nn

_FORMAT = "wsi_dino.segmentation/1"
_KEY = "wsi_dino"


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
        decoder: name; `n_up` its steps of two; `image_skip` whether it takes the image.
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
    window_slices: int
    window_cells: int
    fold: int
    training: dict[str, Any] = {}

    @property
    def label_values(self) -> list[int]:
        """Label of each output channel, background first."""
        return [0, *self.classes]


def write_model(path: Path, network: nn.Module, facts: SegmentationModel) -> None:
    """Write ``NAME.safetensors`` with `facts` in its header, and ``NAME.json`` beside it to read.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_json_atomically(path.with_suffix(".json"), facts)
    with write_atomically(path) as temporary:
        temporary.write_bytes(save(state, metadata={_KEY: facts.model_dump_json()}))


def read_facts(path: Path) -> SegmentationModel:
    """Read what is known of a model without its weights.

    Raises:
        WeightsError: the file is missing, broken, or no model of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return SegmentationModel.model_validate_json(metadata[_KEY])
    except FileNotFoundError as error:
        raise WeightsError(f"Opening the model {path}: there is no such file.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"Opening the model {path}: broken or no safetensors file ({error}).") from error
    except (KeyError, ValidationError) as error:
        raise WeightsError(
            f"Opening the model {path}: it was not written by `wsi-dino radiology segment`, or by another version."
        ) from error


def read_network(path: Path, facts: SegmentationModel) -> nn.Module:
    """Return the network with its weights, on the CPU and in eval mode.

    Raises:
        WeightsError: weights do not fit the facts.
    """
    from safetensors.torch import load_file

    from wsi_dino.segmentation.building import build_network

    network = build_network(facts)
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise WeightsError(f"Opening the model {path}: its weights do not fit its facts ({error}).") from error
    return network.eval()
