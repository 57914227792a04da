"""What is asked for when neurons are segmented. Readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.segmentation.neurons.agglomeration import DEFAULT_SCORING

SUPERVISED = "unet3d"
STAGES = ("affinities", "fragments", "agglomerate", "evaluate")
Stage = Literal["affinities", "fragments", "agglomerate", "evaluate"]


class AffinitySpec(BaseModel):
    """How affinities are learnt and told.

    Attributes:
        upscale: how many times sections are enlarged before the encoder.
        tile_px: side of the square the encoder sees.
        layers: block or stage numbers; None for the encoder's own.
        decoder: of `decoders.DECODERS`.
        image_skip: whether the decoder sees the image too.
        n_views: flips and turns of training sections, each encoded once.
        long_range: learn nine affinities further away beside the three of neighbours.
        window_sections, window_voxels: what a network is given at once, in training and after.
        steps: of training, of one window each; beyond 50 rounded up to whole fifties, after which the training is kept.
        learning_rate: of Adam, falling to 0 by a cosine.
        seed: of weights and windows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    upscale: Literal[1, 2, 4] = 4
    tile_px: int = Field(default=448, ge=32)
    layers: tuple[int, ...] | None = None
    decoder: Literal["conv3d", "linear", "unetr"] = "conv3d"
    image_skip: bool = False
    n_views: int = Field(default=2, ge=1, le=8)
    long_range: bool = False
    window_sections: int = Field(default=16, ge=1)
    window_voxels: int = Field(default=96, ge=8)
    steps: int = Field(default=2000, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)


class FragmentSpec(BaseModel):
    """How affinities become fragments: ``sections``, in each on its own, or ``edges``, waterz's in 3D."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["sections", "edges"] = "sections"


class AgglomerationSpec(BaseModel):
    """How fragments are joined; see `agglomeration.agglomerate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scoring: str = DEFAULT_SCORING
    thresholds: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True)
class EmRequest:
    """One experiment.

    Attributes:
        run: folder of the run.
        encoder: name, or `SUPERVISED`.
        encoder_settings: further arguments of `load_encoder`.
        called: name of the results' folder; "" for one made of what decides them.
        affinities, fragments, agglomeration: how each stage works.
        stage: the only one to do; None for all that are not done.
        optimistic: tell the threshold that is best on the test labels too, flagged.
        with_zarr: write the segmentation as Zarr too.
        with_floors: compute what learns nothing, too.
        device: where networks run.
        workers: threads; 0 for one a core.
    """

    run: Path
    encoder: str
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)
    called: str = ""
    affinities: AffinitySpec = field(default_factory=AffinitySpec)
    fragments: FragmentSpec = field(default_factory=FragmentSpec)
    agglomeration: AgglomerationSpec = field(default_factory=AgglomerationSpec)
    stage: Stage | None = None
    optimistic: bool = False
    with_zarr: bool = False
    with_floors: bool = True
    device: str = "auto"
    workers: int = 0

    @property
    def is_supervised(self) -> bool:
        """Whether a network learns from voxels instead of a decoder from frozen features."""
        return self.encoder == SUPERVISED

    @property
    def label(self) -> str:
        """Name of the results' folder."""
        if self.called or self.is_supervised:
            return self.called or self.encoder
        spec = self.affinities
        layers = "" if spec.layers is None else "+layers" + "-".join(map(str, spec.layers))
        image = "+image" if spec.image_skip else ""
        return f"{self.encoder}@x{spec.upscale}+{spec.decoder}{image}{layers}"
