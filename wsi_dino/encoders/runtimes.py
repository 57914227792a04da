"""What can run a network, and in which number formats. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from wsi_dino.errors import EncoderError

Runtime = Literal["torch", "torch-compile", "openvino", "onnxruntime"]
NumberFormat = Literal["fp32", "bf16", "fp16", "int8"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


@dataclass(frozen=True)
class CompiledRuntime:
    """A library that runs an exported network on a CPU.

    Attributes:
        formats: that it runs in, the fastest first; bf16 only where the processor multiplies it.
        extra: of ``wsi_dino`` that brings it.
    """

    formats: tuple[NumberFormat, ...]
    extra: str


COMPILED: dict[Runtime, CompiledRuntime] = {
    "openvino": CompiledRuntime(("int8", "bf16", "fp32"), "openvino"),
    "onnxruntime": CompiledRuntime(("int8", "fp32"), "onnx"),
}


def parse_runtime(runtime: str) -> Runtime:
    """Return the runtime of that name.

    Raises:
        EncoderError: there is none.

    Examples:
        >>> parse_runtime("openvino")
        'openvino'
    """
    for known in RUNTIMES:
        if known == runtime:
            return known
    raise EncoderError(f"Choosing a runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}.")


def check_format(runtime: Runtime, precision: str) -> None:
    """Refuse a number format that `runtime` does not have.

    Raises:
        EncoderError: with the formats that it has.

    Examples:
        >>> check_format("openvino", "int8")
        >>> check_format("torch", "int8")
        Traceback (most recent call last):
        wsi_dino.errors.EncoderError: ... --runtime openvino or onnxruntime has it.
    """
    formats: tuple[str, ...] = COMPILED[runtime].formats if runtime in COMPILED else ("fp32", "bf16", "fp16")
    if precision in ("auto", *formats):
        return
    others = " or ".join(name for name, compiled in COMPILED.items() if precision in compiled.formats)
    advice = f" --runtime {others} has it." if others else ""
    raise EncoderError(
        f"Choosing a precision: --runtime {runtime} runs in {', '.join(formats)}, not in {precision!r}.{advice}"
    )
