"""Which device and number format an encoder runs in. Imports torch."""

from __future__ import annotations

import platform
from functools import lru_cache

import torch

from wsi_dino.encoders.record import Precision
from wsi_dino.errors import EncoderError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: Precision) -> torch.dtype:
    """Return torch's name of a number format."""
    return _DTYPES[precision]


def resolve_device(device: str) -> str:
    """Return ``"cpu"``, ``"cuda"`` (or ``"cuda:N"``) or ``"mps"``; ``"auto"`` takes the fastest there is.

    Raises:
        EncoderError: the device that was asked for is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    kind, _, index = device.partition(":")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
    if kind not in available:
        raise EncoderError(f"Choosing a device: expected auto, cpu, cuda or mps, got {device!r}.")
    if not available[kind]:
        raise EncoderError(f"Choosing a device: torch {torch.__version__} sees no {kind} here. Use --device auto.")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise EncoderError(f"Choosing a device: there are {torch.cuda.device_count()} GPUs, {device} is not one.")
    return device


def resolve_precision(precision: str, device: str, allowed: tuple[Precision, ...]) -> Precision:
    """Return the number format to run in.

    ``"auto"`` takes bf16 where device and encoder do it well, else fp16 on a GPU, else fp32.

    Raises:
        EncoderError: the format is unknown, unsafe for the encoder, or fp16 was asked of a CPU, where
            it is a hundred times slower than fp32.
    """
    if precision == "auto":
        if "bf16" in allowed and _is_bf16_fast(device):
            return "bf16"
        return "fp16" if "fp16" in allowed and device.startswith("cuda") else "fp32"
    chosen = next((known for known in allowed if known == precision), None)
    if chosen is None:
        raise EncoderError(f"Choosing a precision: expected auto or one of {', '.join(allowed)}, got {precision!r}.")
    if chosen == "fp16" and device == "cpu":
        raise EncoderError("Choosing a precision: fp16 is a hundred times slower than fp32 on a CPU. Use auto or bf16.")
    return chosen


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _is_bf16_fast(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device == "cpu" and _cpu_multiplies_bf16()


@lru_cache(maxsize=1)
def _cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has instructions for bf16 products; emulated ones are slower than fp32."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)
