"""How many images a second an encoder does on a device, measured in a short sample. Imports torch when measuring."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wsi_dino.encoders.encoder import Encoder

_SAMPLE_S = 2.0
_MIN_BATCHES = 2


@dataclass(frozen=True)
class EncoderRate:
    """A measured rate and what it was measured on.

    Attributes:
        encoder: name.
        input_px: side of the square images, as the network sees them.
        device, precision, runtime: where and how the network ran.
        device_name: of the processor or GPU.
        weights: ``"random:SEED"``, or where they came from; the rate does not depend on them.
        maps: feature maps of the record's layers were computed, not vectors.
        n_images, seconds, cpu_seconds: of the sample, loading and one batch to warm up left out.
        output_bytes: of what one image gives, in float32.
    """

    encoder: str
    input_px: int
    device: str
    device_name: str
    precision: str
    runtime: str
    weights: str
    maps: bool
    n_images: int
    seconds: float
    cpu_seconds: float
    output_bytes: int

    @property
    def images_per_s(self) -> float:
        """By the clock; other work on the machine lowers it."""
        return self.n_images / self.seconds

    @property
    def images_per_cpu_s(self) -> float:
        """By the time of this process's processors; says nothing of a GPU."""
        return self.n_images / self.cpu_seconds if self.cpu_seconds else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the rate among them."""
        return {**asdict(self), "images_per_s": self.images_per_s}

    def sentence(self) -> str:
        """Return the rate and what it was measured on, for people."""
        what = "feature maps" if self.maps else "vectors"
        return (
            f"{self.encoder} at {self.input_px} px: {self.images_per_s:.3g} images/s ({what}, {self.precision}, "
            f"{self.runtime}; {self.n_images} generated images in {self.seconds:.1f} s on {self.device}: "
            f"{self.device_name})"
        )


def measure_rate(encoder: Encoder, *, maps: bool = False, sample_s: float = _SAMPLE_S) -> EncoderRate:
    """Measure a loaded encoder on generated images, in the batches that commands give it.

    Args:
        encoder: as loaded.
        maps: measure `Encoder.feature_maps` of the record's layers instead of `Encoder.embed`.
        sample_s: seconds after which no further batch is begun; at least two are done.
    """
    side = encoder.input_px
    shape = (max(encoder.batch_size, 1), side, side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    run: Callable[[np.ndarray], Any] = encoder.feature_maps if maps else encoder.embed
    output = run(pixels)
    n_batches, start, cpu_start = 0, time.perf_counter(), time.process_time()
    while n_batches < _MIN_BATCHES or time.perf_counter() - start < sample_s:
        run(pixels)
        n_batches += 1
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return EncoderRate(
        encoder=encoder.spec.name,
        input_px=side,
        device=encoder.device,
        device_name=_name_of(encoder.device),
        precision=encoder.precision,
        runtime=encoder.runtime,
        weights=encoder.weights_source,
        maps=maps,
        n_images=n_batches * len(pixels),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        output_bytes=sum(item.nbytes for item in output) // len(pixels) if maps else output.nbytes // len(pixels),
    )


def measure_rate_of(
    name: str,
    *,
    input_px: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "torch",
    weights: Path | None = None,
    weights_dir: Path | None = None,
    workers: int = 0,
    maps: bool = False,
    sample_s: float = _SAMPLE_S,
) -> EncoderRate:
    """Load an encoder and measure it; without its weights, the untrained network, which is as fast.

    Args:
        name: as in the registry.
        input_px: side of the square the network sees; None for the record's.
        device: as of `load_encoder`, like all up to `workers`.
        precision: number format.
        runtime: library that runs the network.
        weights: a checkpoint to use.
        weights_dir: folder of checkpoints.
        workers: threads on a CPU; 0 for one a core.
        maps: as of `measure_rate`.
        sample_s: as of `measure_rate`.

    Raises:
        UnknownEncoderError: no encoder has that name.
        EncoderError: size, device, precision or runtime are not to be had.
    """
    from wsi_dino.encoders.loading import load_encoder
    from wsi_dino.errors import WeightsError

    settings: dict[str, Any] = {
        "input_px": input_px, "device": device, "precision": precision, "runtime": runtime, "workers": workers
    }  # fmt: skip
    try:
        encoder = load_encoder(name, weights=weights, weights_dir=weights_dir, **settings)
    except WeightsError:
        encoder = load_encoder(name, random_weights=0, **settings)
    return measure_rate(encoder, maps=maps, sample_s=sample_s)


def _name_of(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    from wsi_dino.encoders.executors import available_cores

    return f"{_processor()}, {available_cores()} cores"


def _processor() -> str:
    """Return the processor's model where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
