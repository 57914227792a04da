"""On which devices `embed` runs: one, or several with a process each."""

from __future__ import annotations

import re

from wsi_dino.errors import ConfigError

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def plan_devices(asked: str, n_slides: int) -> tuple[str, ...]:
    """Return the devices to start a process on; a single one needs no process of its own.

    Args:
        asked: ``auto``, ``cpu``, ``mps``, ``cuda``, ``cuda:N``, or a list of them. ``auto`` and ``cuda`` alone
            mean every GPU that can be seen. A list may name a device twice (``cpu,cpu``).
        n_slides: of the run; more processes than that would have nothing to do.

    Raises:
        ConfigError: something else is asked for.

    Examples:
        >>> plan_devices("cpu,cpu", n_slides=5)
        ('cpu', 'cpu')
        >>> plan_devices("cuda:0,cuda:1,cuda:2", n_slides=2)
        ('cuda:0', 'cuda:1')
    """
    named = tuple(part.strip() for part in asked.split(","))
    for name in named:
        if _DEVICE.fullmatch(name) is None or (len(named) > 1 and name in ("auto", "cuda")):
            several = " A list names each GPU, as in cuda:0,cuda:1." if len(named) > 1 else ""
            raise ConfigError(f"--device {asked}: expected auto, cpu, cuda, cuda:N or mps, got {name!r}.{several}")
    if named in (("auto",), ("cuda",)):
        n_gpus = _visible_gpus()
        named = tuple(f"cuda:{index}" for index in range(n_gpus)) if n_gpus > 1 else named
    return named[: max(1, n_slides)]


def _visible_gpus() -> int:
    """Return how many GPUs torch sees, without starting work on any of them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
