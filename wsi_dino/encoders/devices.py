"""Which device and number format an encoder runs in. Imports torch."""

from __future__ import annotations

import platform
from functools import lru_cache

import torch

from wsi_dino.encoders.convolution_preparation import has_fused_convolution
from wsi_dino.encoders.record import Precision
from wsi_dino.encoders.runtimes import COMPILED, NumberFormat, Runtime, check_format
from wsi_dino.errors import EncoderError

# An int8 network takes its pixels in fp32.
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}


def dtype_of(precision: NumberFormat) -> torch.dtype:
    """Return torch's name of the number format in which pixels are given to a network."""
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


def candidate_formats(
    precision: str,
    device: str,
    allowed: tuple[Precision, ...],
    *,
    runtime: Runtime = "torch",
    is_convolutional: bool = False,
) -> tuple[NumberFormat, ...]:
    """Return the number formats to try in this order; the last one of ``"auto"`` is always right.

    ``"auto"`` takes bf16 where device, runtime and encoder do it well, else fp16 on a GPU, else fp32;
    convolutions, which need more digits than bf16 has, take fp16 first where they may. A convolutional
    network in bf16 on a CPU needs torch's convolution with an fp32 bias, without which its vectors fall to a
    cosine of 0.997. int8 is taken only when it is asked for.

    Raises:
        EncoderError: the format is unknown to the runtime, unsafe for the encoder, or fp16 was asked of
            a CPU, where it is a hundred times slower than fp32.
    """
    if precision != "auto":
        return (_asked(precision, device, allowed, runtime),)
    fp16 = "fp16" in allowed and device.startswith("cuda")
    if fp16 and is_convolutional:
        return ("fp16",)
    if "bf16" in allowed and _is_bf16_fast(device) and _has_bf16(runtime, device, is_convolutional):
        return ("bf16", "fp32") if device == "cpu" else ("bf16",)
    return ("fp16",) if fp16 else ("fp32",)


def resolve_precision(precision: str, device: str, allowed: tuple[Precision, ...]) -> NumberFormat:
    """Return the first of `candidate_formats` for torch and a network that is not convolutional."""
    return candidate_formats(precision, device, allowed)[0]


def _asked(precision: str, device: str, allowed: tuple[Precision, ...], runtime: Runtime) -> NumberFormat:
    if precision == "int8":
        check_format(runtime, precision)
        return "int8"
    chosen = next((known for known in allowed if known == precision), None)
    if chosen is None:
        raise EncoderError(f"Choosing a precision: expected auto or one of {', '.join(allowed)}, got {precision!r}.")
    if chosen == "fp16" and device == "cpu":
        raise EncoderError("Choosing a precision: fp16 is a hundred times slower than fp32 on a CPU. Use auto or bf16.")
    check_format(runtime, precision)
    return chosen


def _has_bf16(runtime: Runtime, device: str, is_convolutional: bool) -> bool:
    if runtime in COMPILED:
        return "bf16" in COMPILED[runtime].formats
    return device != "cpu" or not is_convolutional or has_fused_convolution()


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _is_bf16_fast(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device == "cpu" and cpu_multiplies_bf16()


@lru_cache(maxsize=1)
def cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has instructions for bf16 products; emulated ones are slower than fp32."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)
