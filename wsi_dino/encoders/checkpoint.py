"""Reading a file of weights safely, and putting it into a network with every name accounted for. Imports torch."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsi_dino.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

_WRAPPERS = ("state_dict", "model", "teacher", "module")
_N_NAMED = 3


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file by name.

    Nothing in the file is executed: pickles are read by torch's weights-only unpickler. One level
    of wrapping (``{"state_dict": ...}``) and of ``module.`` prefixes is taken off.

    Raises:
        WeightsError: the file is absent, truncated, corrupt, holds code, or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"Reading weights: there is no file {path}. Check the path given by --weights.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _unwrapped(content)
    if not state:
        raise WeightsError(f"Reading weights {path}: expected named tensors, got {_outline(content)}.")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() and "global" in str(error).lower():
            raise WeightsError(
                f"Reading weights {path}: the file holds pickled code, which is refused because loading it would "
                "run it. Save only the tensors (`model.state_dict()`), best as .safetensors."
            ) from error
        raise _broken(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> WeightsError:
    first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    size = path.stat().st_size
    return WeightsError(
        f"Reading weights {path}: the file is truncated or corrupt ({size} bytes; {first_line}). Fetch it again."
    )


def _unwrapped(content: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        return {}
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _outline(content: Any) -> str:
    if isinstance(content, dict):
        return f"a table with {', '.join(repr(key) for key in list(content)[:_N_NAMED]) or 'nothing in it'}"
    return f"a {type(content).__name__}"


def load_strictly(network: nn.Module, state: dict[str, Tensor], encoder: str, path: Path) -> None:
    """Put `state` into `network`; every tensor of both must fit.

    Raises:
        WeightsError: the checkpoint is of another architecture; the first differing names are given.
    """
    require_fit(network, state, encoder, path)
    dtypes = {key: tensor.dtype for key, tensor in network.state_dict().items()}
    network.load_state_dict({key: tensor.to(dtypes[key]) for key, tensor in state.items()}, strict=False)


def require_fit(network: nn.Module, state: dict[str, Tensor], encoder: str, path: Path) -> None:
    """Check that every tensor of `state` and of `network` has its counterpart, of the same shape.

    Raises:
        WeightsError: the checkpoint is of another architecture; the first differing names are given.
    """
    problems = _differences({key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}, state)
    if problems:
        raise WeightsError(
            f"Loading weights {path} for {encoder}: the file is of another architecture.\n"
            + "\n".join(problems)
            + "\nGive --weights a checkpoint of this encoder, or choose the encoder that fits the file."
        )


def _differences(expected: dict[str, tuple[int, ...]], state: dict[str, Tensor]) -> list[str]:
    # Counters of training steps are absent from checkpoints older than they are; nothing depends on them.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} (expected {expected[key]}, got {tuple(state[key].shape)})"
        for key in expected
        if key in state and tuple(state[key].shape) != expected[key]
    ]
    groups = {"Missing in the file": missing, "Unknown to the encoder": unexpected, "Of another shape": shapes}
    return [f"{title} ({len(keys)}): {', '.join(keys[:_N_NAMED])}" for title, keys in groups.items() if keys]
