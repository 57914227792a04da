"""An ONNX file behind the face of a network of torch. Imports torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.executors import available_cores
from wsi_dino.encoders.onnx_file import OnnxDescription, open_session
from wsi_dino.encoders.record import Pooling
from wsi_dino.errors import EncoderError


class OnnxBackbone(Backbone):
    """Vectors of an ONNX file, run by onnxruntime where the pixels are.

    On a CPU every run uses one thread, because the encoder runs several at once; on a GPU without a
    CUDA build of onnxruntime the runs go to all cores of the CPU.
    """

    def __init__(self, path: Path, description: OnnxDescription, encoder: str) -> None:
        super().__init__()
        self.path, self.description, self.encoder = path, description, encoder
        self._sessions: dict[str, Any] = {}
        self._opening = threading.Lock()
        self._session("cpu")  # a file that cannot be run is found here, not at the first slide

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse: copies are made to export a network for another library, which takes one of torch."""
        raise EncoderError(
            f"Encoder {self.encoder}: an ONNX file is run by onnxruntime as it is, in fp32. "
            "Leave --runtime and --precision out."
        )

    def _session(self, device: str) -> Any:
        with self._opening:
            if device not in self._sessions:
                n_threads = 1 if device == "cpu" else available_cores()
                self._sessions[device] = open_session(
                    self.path, self.encoder, n_threads=n_threads, on_gpu=device == "cuda"
                )
            return self._sessions[device]

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Return (batch, dim) for normalised `pixels` (batch, 3, height, width)."""
        session = self._session(pixels.device.type)
        images = pixels.float().cpu().numpy().astype(self.description.input_dtype, copy=False)
        size = self.description.batch_size or len(images)
        runs = [self._run(session, images[start : start + size], size) for start in range(0, len(images), size)]
        result = torch.from_numpy(np.concatenate(runs)).to(pixels.device).float()
        return _pooled(result, pooling, self.description.settings.n_prefix_tokens)

    def _run(self, session: Any, images: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
        """Run a file of fixed batch size on what there is, filled up with zeros."""
        n_missing = size - len(images)
        filled = np.pad(images, ((0, n_missing), (0, 0), (0, 0), (0, 0))) if n_missing else images
        (result,) = session.run([self.description.output_name], {self.description.input_name: filled})
        vectors: npt.NDArray[Any] = result[: len(images)]
        return vectors

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Refuse: an ONNX file gives its outputs alone."""
        raise EncoderError(f"Encoder {self.encoder}: an ONNX file gives vectors alone, no maps of its layers.")


def _pooled(result: Tensor, pooling: Pooling, n_prefix_tokens: int) -> Tensor:
    if pooling == "cls":
        return result[:, 0]
    if pooling == "mean":
        return result[:, n_prefix_tokens:].mean(1)
    return result.mean((2, 3)) if pooling == "avg" else result
