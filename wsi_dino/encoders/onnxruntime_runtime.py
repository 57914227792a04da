"""Networks run by ONNX Runtime on a CPU. Imports torch; ONNX Runtime inside functions."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from wsi_dino.encoders.compiled_backbone import Pixels, Run, VectorsOnly
from wsi_dino.encoders.extras import require_extra
from wsi_dino.encoders.runtimes import NumberFormat

_OPSET = 17


def compile_network(
    network: VectorsOnly, example: Tensor, precision: NumberFormat, *, workers: int, encoder: str
) -> Run:
    """Return a function that runs `network` on chunks of the shape of `example`, on one core a call.

    Args:
        network: of torch, in fp32 on the CPU.
        example: fp32 (batch, 3, height, width).
        precision: ``"fp32"`` or ``"int8"``.
        workers: threads that call at once; any number.
        encoder: name for messages.

    Raises:
        EncoderError: onnxruntime or onnx is not installed.
    """
    library = require_extra("onnxruntime", "onnx", encoder)
    options = library.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        if precision == "int8":
            from wsi_dino.encoders.quantisation import write_int8_onnx

            path = write_int8_onnx(network, example, Path(folder), encoder)
        else:
            path = write_onnx(network, example, Path(folder), encoder)
        session: Any = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixels: Pixels) -> Any:
        return session.run(None, {"pixels": pixels})[0]

    return run


def write_onnx(network: VectorsOnly, example: Tensor, folder: Path, encoder: str) -> Path:
    """Write `network` for the shape of `example` as ``folder/network.onnx``, input ``pixels``, output ``vectors``.

    Raises:
        EncoderError: onnx is not installed.
    """
    require_extra("onnx", "onnx", encoder)
    path = folder / "network.onnx"
    torch.onnx.export(
        network, (example,), str(path), dynamo=False, opset_version=_OPSET,
        input_names=["pixels"], output_names=["vectors"],
    )  # fmt: skip
    return path
