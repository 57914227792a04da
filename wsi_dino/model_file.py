"""A trained model on disk: safetensors with what must be known of it in the header, and the same beside it to read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from wsi_dino.errors import WeightsError
from wsi_dino.provenance import write_atomically, write_json_atomically

if TYPE_CHECKING:
    from torch import nn

_KEY = "wsi_dino"
FactsType = TypeVar("FactsType", bound=BaseModel)


def write_model_file(path: Path, network: nn.Module, facts: BaseModel) -> None:
    """Write ``NAME.safetensors`` (weights, with the facts in its header) and ``NAME.json`` beside it.

    Each file is written atomically, the readable copy first; reading needs only the first.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    write_json_atomically(path.with_suffix(".json"), facts)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with write_atomically(path) as temporary:
        # not save_file: it makes files that only their owner may read
        temporary.write_bytes(save(state, metadata={_KEY: facts.model_dump_json()}))


def read_model_facts(path: Path, kind: type[FactsType], *, written_by: str) -> FactsType:
    """Read what is known of a model without its weights.

    Args:
        path: ``NAME.safetensors``.
        kind: of the facts.
        written_by: command that writes such models, for the message.

    Raises:
        WeightsError: the file is missing, broken, or no model of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise WeightsError(f"Opening the model {path}: there is no such file.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"Opening the model {path}: broken or no safetensors file ({error}).") from error
    if _KEY not in metadata:
        raise WeightsError(f"Opening the model {path}: it was not written by `{written_by}` (no config inside).")
    try:
        return kind.model_validate_json(metadata[_KEY])
    except ValidationError as error:
        raise WeightsError(
            f"Opening the model {path}: it was not written by `{written_by}`, or its config is of another version "
            f"({error})."
        ) from error


def fill_network(path: Path, network: nn.Module) -> nn.Module:
    """Give a network the weights of a file; return it, on the CPU and in eval mode.

    Raises:
        WeightsError: the weights do not fit the network that the facts describe.
    """
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise WeightsError(f"Opening the model {path}: its weights do not fit its config ({error}).") from error
    return network.eval()
