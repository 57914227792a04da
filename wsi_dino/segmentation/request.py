"""What is asked for when volumes are segmented. Readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wsi_dino.errors import ConfigError

MeetingChoice = Literal["auto", "early", "late"]
NETWORKS = ("monai-unet", "monai-vnet", "monai-unetr", "monai-swinunetr")


class FeatureSpec(BaseModel):
    """How slices become stacked maps.

    Attributes:
        layers: block or stage numbers; None for the encoder's own.
        patch_mm: what a patch is to cover; None for `voxels_per_patch` times the dataset's median in-plane spacing, or
            more where the largest slice would exceed `max_px`.
        voxels_per_patch: see there.
        max_px: largest side shown to the encoder when `patch_mm` is not given.
        n_views: ways in which each training slice is encoded, the first of `views.VIEWS`.
        n_test_views: ways in which each held-out slice is encoded; the answers are averaged.
        meeting: of several channels; auto = early for up to three, else late.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] | None = None
    patch_mm: float | None = Field(default=None, gt=0)
    voxels_per_patch: float = Field(default=3.5, gt=0)
    max_px: int = Field(default=448, ge=32)
    n_views: int = Field(default=1, ge=1, le=8)
    n_test_views: int = Field(default=1, ge=1, le=8)
    meeting: MeetingChoice = "auto"

    @model_validator(mode="after")
    def _tested_in_what_was_learned(self) -> FeatureSpec:
        require_learned_views(self.n_test_views, self.n_views, f"--views {self.n_views}")
        return self


def require_learned_views(n_test_views: int, n_learned: int, most: str) -> None:
    """Raise ConfigError when a decoder would be tested in more views than it has learned from; `most` in words."""
    if n_test_views > n_learned:
        raise ConfigError(
            f"--test-views {n_test_views}: a decoder is worse in views that it has not learned from. Expected at most "
            f"{most}."
        )


class DecoderSpec(BaseModel):
    """What turns stacked maps into voxels.

    Attributes:
        name: of `decoders.DECODERS`.
        image_skip: whether the image joins the features at full resolution.
        crop_slices, crop_cells: largest part of a volume seen at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["conv3d", "linear", "unetr"] = "conv3d"
    image_skip: bool = False
    crop_slices: int = Field(default=48, ge=1)
    crop_cells: int = Field(default=20, ge=1)


class ScoringSpec(BaseModel):
    """How predictions are scored; see `evaluation.segmentation`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    definition: Literal["max", "pooled"] = "max"
    empty: Literal["nan", "inf", "image_diagonal"] = "nan"


@dataclass(frozen=True)
class SegmentRequest:
    """One experiment: a dataset, an encoder or a network, folds.

    Attributes:
        run: folder of the run.
        dataset: name; `root` its folder.
        channels: names to keep, in order; None for all.
        encoder: name, or one of `NETWORKS` for a network that learns from voxels.
        encoder_settings: further arguments of `load_encoder`.
        called: name of the results' folder; "" for one made of encoder and decoder.
        training: fields of `TrainingSpec` that were given.
        scheme: of folds; None for the dataset's.
        n_folds: of the scheme; `folds` those to run, None for all.
        n_cases: at most, spread evenly over the folds; None for all.
        workers: threads; 0 for one a core.
        device: where everything runs.
        keep_predictions: whether label maps are written.
    """

    run: Path
    dataset: str
    root: Path
    encoder: str
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] | None = None
    called: str = ""
    features: FeatureSpec = field(default_factory=FeatureSpec)
    decoder: DecoderSpec = field(default_factory=DecoderSpec)
    scoring: ScoringSpec = field(default_factory=ScoringSpec)
    training: Mapping[str, Any] = field(default_factory=dict)
    scheme: Literal["kfold", "repeated-holdout", "patients"] | None = None
    n_folds: int = 5
    folds: tuple[int, ...] | None = None
    n_cases: int | None = None
    workers: int = 0
    device: str = "auto"
    keep_predictions: bool = True

    @property
    def is_network(self) -> bool:
        """Whether a network learns from voxels instead of a decoder from frozen features."""
        return self.encoder in NETWORKS

    @property
    def label(self) -> str:
        """Name of the results' folder; that of an untrained encoder says so."""
        seed = self.encoder_settings.get("random_weights")
        encoder = self.encoder if seed is None else f"{self.encoder}-random-{seed}"
        parts = [encoder] if self.is_network else [encoder, self.decoder.name]
        if self.decoder.image_skip and not self.is_network:
            parts.append("image")
        return self.called or "+".join(parts)
