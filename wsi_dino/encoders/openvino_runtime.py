"""Networks run by OpenVINO on a CPU. Imports torch; OpenVINO inside functions."""

from __future__ import annotations

import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from wsi_dino.encoders.compiled_backbone import Pixels, Run, VectorsOnly
from wsi_dino.encoders.extras import require_extra
from wsi_dino.encoders.runtimes import NumberFormat

_HINTS: dict[NumberFormat, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def compile_network(
    network: VectorsOnly, example: Tensor, precision: NumberFormat, *, workers: int, encoder: str
) -> Run:
    """Return a function that runs `network` on chunks of the shape of `example`, on one core a call.

    Args:
        network: of torch, in fp32 on the CPU.
        example: fp32 (batch, 3, height, width).
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"`` (which also needs the extra ``onnx``).
        workers: threads that call at once.
        encoder: name for messages.

    Raises:
        EncoderError: OpenVINO is not installed.
    """
    openvino = require_extra("openvino", "openvino", encoder)
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # One stream a worker and one thread a stream: a vector then does not depend on the number of cores.
        "NUM_STREAMS": workers,
        "INFERENCE_NUM_THREADS": workers,
        "ENABLE_CPU_PINNING": False,  # other processes have their share of the cores
    }
    return _run_in_threads(
        core.compile_model(_model(openvino, core, network, example, precision, encoder), "CPU", settings)
    )


def _model(
    openvino: Any, core: Any, network: VectorsOnly, example: Tensor, precision: NumberFormat, encoder: str
) -> Any:
    if precision == "int8":
        from wsi_dino.encoders.quantisation import write_int8_onnx

        with TemporaryDirectory() as folder:
            model = core.read_model(write_int8_onnx(network, example, Path(folder), encoder))
            return openvino.Model(model.outputs, model.get_parameters(), encoder).clone()
    # Freezing computes what depends on the shape alone (rotary positions, say) once, here.
    traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))  # type: ignore[no-untyped-call]
    return openvino.convert_model(traced, example_input=example, input=[tuple(example.shape)])


def _run_in_threads(compiled: Any) -> Run:
    """Return a function for many threads, each with a request of its own."""
    own = threading.local()

    def run(pixels: Pixels) -> Any:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return own.request.infer([pixels], share_inputs=True)[0].copy()

    return run
