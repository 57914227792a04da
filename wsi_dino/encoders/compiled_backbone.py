"""A network exported to another runtime, behind the face of a network of torch. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.record import Pooling
from wsi_dino.encoders.runtimes import NumberFormat, Runtime
from wsi_dino.errors import EncoderError

Pixels = npt.NDArray[np.float32]
Run = Callable[[Pixels], npt.NDArray[np.float32]]


class VectorsOnly(nn.Module):
    """The part of a network that is exported: normalised pixels to the vectors of one pooling."""

    def __init__(self, backbone: Backbone, pooling: Pooling) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (batch, dim) for `pixels` (batch, 3, height, width)."""
        return self.backbone.vectors(pixels, self.pooling).float()


class CompiledBackbone(Backbone):
    """Vectors from an exported network: one pooling, one size, chunks of one length, single-threaded runs.

    Attributes:
        pooling: that was exported.
    """

    def __init__(self, run: Run, pooling: Pooling, encoder: str) -> None:
        super().__init__()
        self.pooling, self._run, self._encoder = pooling, run, encoder

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Return (batch, dim) for normalised `pixels` (batch, 3, height, width) of the exported shape."""
        if pooling != self.pooling:
            raise EncoderError(f"Encoder {self._encoder}: it was exported with {self.pooling} pooling, not {pooling}.")
        return torch.from_numpy(self._run(np.ascontiguousarray(pixels.numpy())))

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Refuse: only the vectors are exported."""
        raise EncoderError(f"Encoder {self._encoder}: feature maps are computed by --runtime torch alone.")


class TorchCompiled(Backbone):
    """A prepared network whose vectors go through ``torch.compile``, for chunks of one shape."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.is_convolutional = backbone.is_convolutional
        self._compiled: Callable[..., Tensor] = torch.compile(backbone.vectors, dynamic=False)

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Return (batch, dim) for normalised `pixels` (batch, 3, height, width)."""
        return self._compiled(pixels, pooling)

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return what the network gives without compilation."""
        return self.backbone.maps(pixels, layers)


def compile_backbone(
    backbone: Backbone,
    pooling: Pooling,
    encoder: str,
    *,
    runtime: Runtime,
    precision: NumberFormat,
    chunk_shape: tuple[int, int, int, int],
    workers: int,
) -> CompiledBackbone:
    """Export `backbone` (on the CPU, in fp32, folded) for chunks (batch, 3, height, width) of one shape.

    Args:
        backbone: consumed: its weights belong to the exported network afterwards.
        pooling: of the vectors.
        encoder: name for messages.
        runtime: ``"openvino"`` or ``"onnxruntime"``.
        precision: number format to run in.
        chunk_shape: of what `vectors` will be given.
        workers: threads that will ask for vectors at once; each run uses one core.

    Raises:
        EncoderError: the library is not installed, or cannot express this network.
    """
    from wsi_dino.encoders import onnxruntime_runtime, openvino_runtime

    network = VectorsOnly(backbone, pooling).eval()
    library: Any = openvino_runtime if runtime == "openvino" else onnxruntime_runtime
    with _export_errors(encoder, runtime), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every branch on a shape, and shapes are fixed here
        run = library.compile_network(network, torch.zeros(chunk_shape), precision, workers=workers, encoder=encoder)
    return CompiledBackbone(run, pooling, encoder)


@contextmanager
def _export_errors(encoder: str, runtime: Runtime) -> Iterator[None]:
    try:
        yield
    except (EncoderError, MemoryError):
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise EncoderError(
            f"Encoder {encoder}: {runtime} cannot take its network "
            f"({type(error).__name__}: {lines[-1].strip()[:160]}). Leave --runtime out to run it in torch."
        ) from error
