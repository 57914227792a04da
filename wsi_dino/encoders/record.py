"""What is known of an encoder before any weight is loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Pooling = Literal["cls", "mean", "cls+mean", "avg", "attention", "projected", "pooler", "output"]
Precision = Literal["fp32", "bf16", "fp16"]


_DECIDING = (
    "name", "family", "architecture", "architecture_options", "patch_size", "n_prefix_tokens", "mean", "std",
    "interpolation", "crop_fraction",
)  # fmt: skip


class EncoderSpec(BaseModel):
    """The record of one encoder; readable without torch.

    Attributes:
        name: as typed after ``--encoder``.
        family: the module of ``encoders/families`` that builds it, e.g. ``"dinov3"``; a plug-in leaves it out.
        architecture: the timm name or what the family's builder needs, with `architecture_options`.
        embed_dim: length of the vector for the default pooling.
        input_px: side of the square the encoder sees; tiles of another size are resized to it.
        input_multiple_px: other sides are allowed when they are a multiple of this; None forbids others.
        max_input_px: the largest side allowed; None sets no limit.
        crop_fraction: share of the side that the authors' own preparation keeps after its resize (224 of
            256 px: 0.875). Tiles are cut to what an encoder sees, so that nothing is cropped of them. Whole
            images (radiographs) are shown whole by default, since findings lie at their edges too, and as the
            authors showed theirs where ``--crop-fraction record`` asks for it.
        dimensions: 2 for images; 3 for networks that take a volume: listed for comparison, run by none
            of the slide commands.
        takes: what goes in, in words, where it is not one RGB image of `input_px`.
        patch_size: side of a ViT token in px; None for convolutional encoders.
        n_prefix_tokens: CLS and register tokens before the patch tokens.
        mean, std: per channel, on a 0..1 scale.
        interpolation: of the resize to `input_px`.
        pooling: the default; `poolings` are all that may be asked for. ``projected`` is the vector in the
            space shared with text, ``pooler`` what transformers calls `pooler_output`, ``output`` what a
            file that is a whole network gives.
        pooling_dims: lengths of vectors that do not follow from `embed_dim`; see `dim_of`.
        feature_layers: blocks whose maps are taken for multi-scale features.
        source: hub repository or package; `revision` its pinned commit, None when none is pinned.
        weights_file: file name in that repository; `weights_sha256` its SHA-256 where it is known.
        precisions: what it may be run in without harm to its features.
        parameters_m: millions.
        licence, licence_url: terms of the weights; `gated`: must be accepted at `source` first.
        obligations: what the licence asks of who publishes or passes on results, a sentence each; they
            stand in every report.
        is_public: whether weights can be had at all; without them the record says so in `notes` and only
            ``--weights FILE`` or ``--random-weights`` runs it.
        paper: name of the encoder in the tables of the benchmark's paper, "" where it has none.
        training_data: what it was trained on, and how.
        notes: what else a user must know.
        plugin_sha256: of a plug-in's source, set when it is loaded; None for the encoders of this package.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str = ""
    architecture: str
    embed_dim: int
    architecture_options: dict[str, Any] = {}
    input_px: int = 224
    input_multiple_px: int | None = None
    max_input_px: int | None = None
    crop_fraction: float = 1.0
    dimensions: Literal[2, 3] = 2
    takes: str = ""
    patch_size: int | None = None
    n_prefix_tokens: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    pooling: Pooling
    poolings: tuple[Pooling, ...]
    pooling_dims: dict[str, int] = {}
    feature_layers: tuple[int, ...] = ()
    source: str
    revision: str | None = None
    weights_file: str = "model.safetensors"
    weights_sha256: str | None = None
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    parameters_m: float | None = None
    licence: str
    licence_url: str = ""
    obligations: tuple[str, ...] = ()
    gated: bool = False
    is_public: bool = True
    paper: str = ""
    training_data: str = ""
    notes: str = ""
    plugin_sha256: str | None = None

    def allows_px(self, input_px: int) -> bool:
        """Return whether the side of the square that the encoder sees may be `input_px`.

        Examples:
            >>> record = EncoderSpec(name="a", family="a", architecture="a", embed_dim=8, pooling="cls",
            ...     poolings=("cls",), input_multiple_px=16, max_input_px=512, source="a", licence="MIT")
            >>> [record.allows_px(side) for side in (224, 230, 512, 528)]
            [True, False, True, False]
        """
        if input_px == self.input_px:
            return True
        within = 0 < input_px <= (self.max_input_px or input_px)
        return within and self.input_multiple_px is not None and input_px % self.input_multiple_px == 0

    def deciding(self) -> dict[str, Any]:
        """Return the fields that decide a vector, as plain values; the others only tell of the encoder.

        A corrected note or licence must not make anybody embed their slides again.
        """
        return self.model_dump(mode="json", include=set(_DECIDING))

    def dim_of(self, pooling: str) -> int:
        """Return the length of the vector for one of `poolings`.

        Examples:
            >>> record = EncoderSpec(name="a", family="a", architecture="a", embed_dim=512, pooling="projected",
            ...     poolings=("projected", "cls"), pooling_dims={"cls": 768}, source="a", licence="MIT")
            >>> record.dim_of("projected"), record.dim_of("cls")
            (512, 768)
        """
        n_parts, n_default_parts = (len(name.split("+")) for name in (pooling, self.pooling))
        return self.pooling_dims.get(pooling, self.embed_dim * n_parts // n_default_parts)
