"""A training between two epochs on disk: weights, what the optimiser remembers, the rows so far. Imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_dino.provenance import write_atomically

_KEY = "wsi_dino"


def write_state(
    path: Path, fingerprint: str, network: nn.Module, optimiser: torch.optim.Optimizer, rows: list[dict[str, float]]
) -> None:
    """Keep a training after an epoch, atomically."""
    from safetensors.torch import save

    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    for i, parameter in enumerate(network.parameters()):
        for name, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{i}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    facts = json.dumps({"fingerprint": fingerprint, "rows": rows})
    with write_atomically(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={_KEY: facts}))


def read_state(
    path: Path, fingerprint: str, network: nn.Module, optimiser: torch.optim.Optimizer
) -> list[dict[str, float]]:
    """Put a kept training back; return its rows, none when there is no such training here."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            if facts.get("fingerprint") != fingerprint:
                return []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return []
    network.load_state_dict(_below(tensors, "network."))
    for i, parameter in enumerate(network.parameters()):
        kept = _below(tensors, f"optimiser.{i}.")
        optimiser.state[parameter] = {
            name: value if name == "step" else value.to(parameter) for name, value in kept.items()
        }
    rows: list[dict[str, Any]] = facts["rows"]
    return rows


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
