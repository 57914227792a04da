"""What is known of an encoder before any weight is loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Pooling = Literal["cls", "mean", "cls+mean", "avg", "attention"]
Precision = Literal["fp32", "bf16", "fp16"]


class EncoderSpec(BaseModel):
    """The record of one encoder; readable without torch.

    Attributes:
        name: as typed after ``--encoder``.
        family: the module of ``encoders/families`` that builds it, e.g. ``"dinov3"``.
        architecture: the timm name or what the family's builder needs, with `architecture_options`.
        embed_dim: length of the vector for the default pooling.
        input_px: side of the square the encoder sees; tiles of another size are resized to it.
        input_multiple_px: other sides are allowed when they are a multiple of this; None forbids others.
        patch_size: side of a ViT token in px; None for convolutional encoders.
        n_prefix_tokens: CLS and register tokens before the patch tokens.
        mean, std: per channel, on a 0..1 scale.
        interpolation: of the resize to `input_px`.
        pooling: the default; `poolings` are all that may be asked for.
        feature_layers: blocks whose maps are taken for multi-scale features.
        source: hub repository or package; `revision` its pinned commit, None when none is pinned.
        weights_file: file name in that repository; `weights_sha256` its SHA-256 where it is known.
        precisions: what it may be run in without harm to its features.
        parameters_m: millions.
        licence, licence_url: terms of the weights; `gated`: must be accepted at `source` first.
        notes: what a user must know, e.g. obligations of the licence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    architecture: str
    embed_dim: int
    architecture_options: dict[str, Any] = {}
    input_px: int = 224
    input_multiple_px: int | None = None
    patch_size: int | None = None
    n_prefix_tokens: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    pooling: Pooling
    poolings: tuple[Pooling, ...]
    feature_layers: tuple[int, ...] = ()
    source: str
    revision: str | None = None
    weights_file: str = "model.safetensors"
    weights_sha256: str | None = None
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    parameters_m: float | None = None
    licence: str
    licence_url: str = ""
    gated: bool = False
    training_data: str = ""
    notes: str = ""
