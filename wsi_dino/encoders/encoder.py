"""A loaded encoder: uint8 pixels to embeddings and feature maps, preprocessing included. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_dino.encoders.adapter import Adapter
from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.compiled_backbone import TorchCompiled, compile_backbone
from wsi_dino.encoders.devices import dtype_of
from wsi_dino.encoders.executors import CpuThreads, OneDevice
from wsi_dino.encoders.preparation import fold_for_inference, pixel_dtype, prepare_for_inference
from wsi_dino.encoders.record import EncoderSpec, Pooling
from wsi_dino.encoders.runtimes import COMPILED, NumberFormat, Runtime
from wsi_dino.errors import EncoderError
from wsi_dino.heartbeat import note_progress

Pixels = npt.NDArray[np.uint8] | Tensor


class _Executor(Protocol):
    chunk_size: int
    batch_size: int

    def run(self, function: Callable[[Tensor], Any], pixels: Tensor) -> list[Any]:
        """Return what `function` gives for every chunk of `pixels`, in order."""


class Encoder:
    """Pixels in, vectors out; everything that decides a vector is inside.

    Images are processed in chunks of one fixed size, the last one padded, so that a vector depends
    on its image alone and not on how many were given at once.

    Attributes:
        spec: the record.
        pooling, input_px, embed_dim: as chosen for this encoder (``cls+mean`` doubles the dimension).
        device, precision, runtime: where, in which number format and by which library the network runs.
        weights_sha256: of the weights' file, or ``"random:SEED"``.
        weights_source: ``"file"``, ``"package"``, ``"hub"`` (also by way of its cache) or ``"random:SEED"``.
        weights_revision: commit of the hub's repository, where it is known. It does not say which vectors may be
            mixed: the same file may stand in many commits.
        batch_size: images to give at once for full speed.
        adapter: what the weights were adapted with, or None.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: Backbone,
        *,
        pooling: str,
        input_px: int,
        device: str,
        precision: NumberFormat,
        runtime: Runtime = "torch",
        weights_sha256: str,
        weights_source: str,
        weights_revision: str | None = None,
        workers: int = 0,
        processes: int = 1,
        adapter: Adapter | None = None,
    ) -> None:
        self.input_px, self.device, self.adapter = input_px, device, adapter
        self._follow(spec, pooling)
        self.precision: NumberFormat = precision
        self.runtime: Runtime = runtime
        self.weights_sha256, self.weights_source = weights_sha256, weights_source
        self.weights_revision = weights_revision
        self._executor: _Executor
        if runtime in COMPILED:
            self._executor = threads = CpuThreads(input_px, precision, workers, processes)
            self._backbone = self._exported(fold_for_inference(backbone, spec, input_px), threads)
            self._dtype = torch.float32
            return
        self._backbone = prepare_for_inference(backbone, spec, input_px, device, dtype_of(precision))
        self._dtype = pixel_dtype(self._backbone, precision)
        self._executor = (
            CpuThreads(input_px, precision, workers, processes)
            if device == "cpu"
            else OneDevice(device, self._vectors, input_px)
        )
        if runtime == "torch-compile":  # after the search for the largest chunk, which tries many shapes
            self._backbone = TorchCompiled(self._backbone)

    def _exported(self, folded: Backbone, threads: CpuThreads) -> Backbone:
        return compile_backbone(
            folded,
            self.pooling,
            self.spec.name,
            runtime=self.runtime,
            precision=self.precision,
            chunk_shape=(threads.chunk_size, 3, self.input_px, self.input_px),
            workers=threads.workers,
        )

    def _follow(self, spec: EncoderSpec, pooling: str) -> None:
        """Take preprocessing and pooling from `spec`."""
        self.spec = spec
        self.pooling: Pooling = next(known for known in spec.poolings if known == pooling)
        self.embed_dim = spec.dim_of(self.pooling)
        self._scale, self._shift = normalisation(spec, self.device)

    def altered(self, pooling: str | None = None, **fields: Any) -> Encoder:
        """Return an encoder of the same network that follows another record.

        It shows what a mistake in the record would do to the vectors.

        Args:
            pooling: another of the record's.
            fields: of the record: ``mean``, ``std`` or ``interpolation``.
        """
        other = copy.copy(self)
        other._follow(self.spec.model_copy(update=fields), pooling or self.pooling)
        return other

    @property
    def batch_size(self) -> int:
        """Images to give at once for full speed; depends on the device and the number of workers alone."""
        return self._executor.batch_size

    @property
    def chunk_size(self) -> int:
        """Images that go through the network together, whatever the size of the batch."""
        return self._executor.chunk_size

    @property
    def network(self) -> Backbone:
        """The network as it runs, in eval mode, prepared for speed."""
        return self._backbone

    def embed(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return one vector an image.

        Args:
            pixels: uint8 RGB (batch, height, width, 3), square; another side than `input_px` is resized.

        Returns:
            float32 (batch, embed_dim).

        Raises:
            EncoderError: `pixels` is of another type or shape.
        """
        tensor = _checked(pixels, self.spec.name)
        vectors = np.empty((len(tensor), self.embed_dim), np.float32)
        start = 0
        for chunk in self._executor.run(self._vectors, tensor):
            stop = min(start + len(chunk), len(vectors))
            vectors[start:stop] = chunk[: stop - start].cpu().numpy()
            start = stop
        note_progress()
        return vectors

    def feature_maps(self, pixels: Pixels, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Return the maps of chosen layers, prefix tokens removed.

        Args:
            pixels: as for `embed`.
            layers: block numbers of a ViT or stages of a convolutional network; None for the record's.

        Returns:
            For each layer float32 (batch, channels, height, width) on the CPU.

        Raises:
            EncoderError: `pixels` is of another type or shape, or the network has no such layer.
        """
        tensor = _checked(pixels, self.spec.name)
        chosen = tuple(self.spec.feature_layers if layers is None else layers)
        if not chosen or min(chosen) < 0:
            raise self._no_layer(chosen)
        distinct = sorted(set(chosen))
        chunks = self._executor.run(lambda chunk: self._maps(chunk, distinct), tensor)
        note_progress()
        joined = {layer: torch.cat([maps[i] for maps in chunks])[: len(tensor)] for i, layer in enumerate(distinct)}
        return [joined[layer] for layer in chosen]

    def identity(self) -> dict[str, Any]:
        """Return what decides the vectors, as plain values: features of one identity may be mixed."""
        random = self.weights_source.startswith("random:")
        return {
            "encoder": self.spec.name,
            "embed_dim": self.embed_dim,
            "pooling": self.pooling,
            "input_px": self.input_px,
            "weights_sha256": self.weights_sha256,
            "weights_source": self.weights_source,
            "weights_revision": self.weights_revision,
            "adapter": None if self.adapter is None else self.adapter.sha256,
            "plugin_sha256": self.spec.plugin_sha256,
            "precision": self.precision,
            "runtime": self.runtime,
            "random_weights": int(self.weights_source.removeprefix("random:")) if random else None,
            "record": self.spec.model_dump(mode="json"),
        }

    def _vectors(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            vectors = self._backbone.vectors(self._normalised(pixels), self.pooling).float()
        if vectors.shape != (len(pixels), self.embed_dim):
            raise EncoderError(
                f"Embedding with {self.spec.name}: expected vectors of shape {(len(pixels), self.embed_dim)} as its "
                f"record says (embed_dim, pooling {self.pooling}), got {tuple(vectors.shape)} from its network."
            )
        return vectors

    def _maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        with torch.inference_mode():
            normalised = self._normalised(pixels)
            try:
                maps = [item.float().cpu() for item in self._backbone.maps(normalised, layers)]
            except (AssertionError, IndexError, KeyError, NotImplementedError) as error:
                raise self._no_layer(layers) from error
        if len(maps) != len(layers):
            raise EncoderError(
                f"Feature maps of {self.spec.name}: expected {len(layers)}, one for each of layers {tuple(layers)}, "
                f"got {len(maps)} from its network."
            )
        return maps

    def _no_layer(self, layers: Sequence[int]) -> EncoderError:
        own = ", ".join(map(str, self.spec.feature_layers))
        known = f"its record names the layers {own}, numbered from 0" if own else "its record names none"
        return EncoderError(
            f"Feature maps of {self.spec.name}: it gives none for layers ({', '.join(map(str, layers))}); {known}."
        )

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return (batch, 3, input_px, input_px) in the network's number format, channels last in memory."""
        moved = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if moved.shape[-1] != self.input_px:
            moved = resized(moved, self.input_px, self.spec.interpolation)
        return torch.addcmul(self._shift, moved, self._scale).to(self._dtype)


def normalisation(spec: EncoderSpec, device: str) -> tuple[Tensor, Tensor]:
    """Return factor and summand that turn 0..255 into what the network was trained on."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def resized(pixels: Tensor, side_px: int, interpolation: str) -> Tensor:
    """Resize with antialiasing and round to whole grey values, as image libraries do."""
    from torch.nn.functional import interpolate

    grey_values = interpolate(pixels.float(), size=(side_px, side_px), mode=interpolation, antialias=True)
    return grey_values.round_().clamp_(0, 255)


def _checked(pixels: Pixels, name: str) -> Tensor:
    # A copy of what cannot be written to (as image libraries hand it out), of which torch would warn.
    tensor = torch.from_numpy(np.require(pixels, requirements=["C", "W"])) if isinstance(pixels, np.ndarray) else pixels
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8:
        got = getattr(pixels, "dtype", type(pixels).__name__)
        raise EncoderError(f"Embedding with {name}: expected uint8 pixels 0..255, got {got}.")
    if tensor.ndim != 4 or tensor.shape[3] != 3:
        raise EncoderError(
            f"Embedding with {name}: expected RGB images of shape (batch, height, width, 3), got {tuple(tensor.shape)}."
        )
    if tensor.shape[1] != tensor.shape[2] or tensor.shape[1] == 0:
        raise EncoderError(f"Embedding with {name}: expected square images, got {tuple(tensor.shape[1:3])} px.")
    return tensor
