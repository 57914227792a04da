"""What is asked of an embedding, and the encoders that are to do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.pathology.embed_table import embed_stage
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder

StainMethod = Literal["macenko", "vahadane", "reinhard"]

# What of an encoder's identity was asked for; the rest (precision, batch size) may be chosen by the machine.
_ASKED_KEYS = (
    "encoder", "embed_dim", "pooling", "input_px", "weights_sha256", "adapter", "plugin_sha256", "random_weights",
)  # fmt: skip
_FORMAT = "embed/1"


class EmbedSpec(BaseModel):
    """The request for features of all slides of a run.

    Attributes:
        store_dtype: of the features on disk. float16 halves the files at a cosine of 0.9999999 to float32,
            but CLAM's training code feeds it to a float32 model as it is, and stops.
        backend: reader of the slides, see `slide.open_slide`.
        precision: as asked; ``"auto"`` leaves it to the encoder and the device.
        runtime: library that runs the network, see `encoders.runtimes`.
        batch_size: tiles of a batch; 0 leaves it to the encoder.
        stain_method: normalise stains to `stain_reference`, or None.
        stain_reference_sha256: of the reference image's file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_dtype: Literal["float16", "float32"] = "float32"
    backend: str = "auto"
    precision: str = "auto"
    runtime: str = "torch"
    batch_size: int = 0
    stain_method: StainMethod | None = None
    stain_reference_sha256: str | None = None

    @property
    def stain_norm(self) -> str | None:
        """Text that identifies the stain normalisation; files of different ones cannot be mixed."""
        return None if self.stain_method is None else f"{self.stain_method}:{self.stain_reference_sha256}"


class TileEncoder(Protocol):
    """An encoder as this room needs it."""

    @property
    def spec(self) -> EncoderSpec: ...

    @property
    def embed_dim(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def embed(self, tiles: np.ndarray) -> np.ndarray: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class EncoderTask:
    """One encoder of a run, with the spec of the features it is to make.

    Attributes:
        encoder: loaded.
        spec: the request.
        batch_size: tiles of a full batch.
    """

    encoder: TileEncoder
    spec: EmbedSpec
    batch_size: int

    @property
    def name(self) -> str:
        """Name of the encoder as it was asked for."""
        return self.encoder.spec.name

    @property
    def stage(self) -> str:
        """Stage of the run's rows and claims."""
        return embed_stage(self.name)

    @property
    def identity(self) -> dict[str, Any]:
        """Provenance of every feature file of this task."""
        return {**self.encoder.identity(), "stain_norm": self.spec.stain_norm, "store_dtype": self.spec.store_dtype}

    def item_fingerprint(self, tiles_sha256: str) -> str:
        """Return what changes with the request, the weights or the tiles (hence the slide) of one slide.

        What a machine chooses by itself (automatic precision, batch size, reader) does not enter, so that
        unlike machines share a run without redoing each other's slides.
        """
        identity = self.encoder.identity()
        asked = {key: identity.get(key) for key in _ASKED_KEYS}
        return fingerprint(_FORMAT, self.encoder.spec.deciding(), asked, self.spec, tiles_sha256)


def feature_path(run: RunFolder, encoder: str, slide_id: str) -> Path:
    """Return the feature file of one slide."""
    return run.features(encoder) / f"{slide_id}.h5"


def tile_path(run: RunFolder, slide_id: str) -> Path:
    """Return the tile file of one slide."""
    return run.tiles / f"{slide_id}.h5"
