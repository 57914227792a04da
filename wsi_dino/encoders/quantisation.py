"""Networks in int8: ONNX Runtime's own static quantisation. Imports torch.

Weights are rounded channel by channel, activations with the range they have over generated tiles. What
OpenVINO itself would do needs a library of its own (nncf); it runs the file that is written here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wsi_dino.encoders.compiled_backbone import VectorsOnly
from wsi_dino.encoders.extras import require_extra

_N_TILES = 24


def write_int8_onnx(network: VectorsOnly, example: Tensor, folder: Path, encoder: str) -> Path:
    """Write `network` for the shape of `example` in int8 to ``folder/int8.onnx``.

    Args:
        network: of torch, in fp32 on the CPU.
        example: fp32 (batch, 3, side, side).
        folder: also takes the steps on the way.
        encoder: name for messages.

    Raises:
        EncoderError: onnxruntime or onnx is not installed.
    """
    from wsi_dino.encoders.onnxruntime_runtime import write_onnx

    require_extra("onnxruntime", "onnx", encoder)
    plain = write_onnx(network, example, folder, encoder)
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, result = folder / "prepared.onnx", folder / "int8.onnx"
    # Between convolutions everything stays in int8; the norms and softmax of a transformer do not bear it.
    operations = None if network.backbone.is_convolutional else ["MatMul", "Gemm", "Conv"]
    quiet, level = logging.getLogger(), logging.getLogger().level
    quiet.setLevel(logging.ERROR)
    try:
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(result),
            _CalibrationTiles(example),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operations,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        quiet.setLevel(level)
    return result


class _CalibrationTiles:
    """Generated tiles in chunks of the exported length, as ONNX Runtime asks for them: one by one until None."""

    def __init__(self, example: Tensor) -> None:
        self._chunks = _chunks(example)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next chunk under the name of the network's input."""
        return next(self._chunks, None)


def _chunks(example: Tensor) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    from wsi_dino.encoders.faithfulness import generated_tiles

    size, _, side, _ = example.shape
    # Networks were trained on values of about -2..2; the exact scale of each channel is theirs.
    pixels = generated_tiles(side, max(_N_TILES, size)).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    for start in range(0, len(pixels) - size + 1, size):
        yield {"pixels": np.ascontiguousarray(pixels[start : start + size])}
