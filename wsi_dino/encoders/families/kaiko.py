"""kaiko.ai's vision transformers of histology (Aben et al. 2024), in timm's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

_SUFFIX = "kaiko_ai_towards_large_pathology_fms"
_SMALL_LAYERS = (2, 5, 8, 11)


def _record(name: str, architecture: str, patch_size: int, n_prefix_tokens: int = 1, **fields: Any) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        family="kaiko",
        architecture=architecture,
        architecture_options={"dynamic_img_size": True},
        input_multiple_px=patch_size,
        patch_size=patch_size,
        n_prefix_tokens=n_prefix_tokens,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bilinear",
        pooling="cls",
        poolings=("cls", "mean", "cls+mean"),
        source=f"1aurent/{architecture}.{_SUFFIX}",
        licence="kaiko-non-commercial",
        licence_url=f"https://huggingface.co/1aurent/{architecture}.{_SUFFIX}",
        obligations=("Non-commercial use only.",),
        training_data="TCGA slides, self-supervised (DINOv2)" if patch_size == 14 else "TCGA slides, self-supervised",
        notes="kaiko.ai's weights as a third party published them in timm's names.",
        **fields,
    )


RECORDS = (
    _record(
        "kaiko-s8", "vit_small_patch8_224", 8, embed_dim=384, parameters_m=21.7, feature_layers=_SMALL_LAYERS,
        revision="003775444da0119f90ca63e2b86e454fd06ba797",
    ),
    _record(
        "kaiko-s16", "vit_small_patch16_224", 16, embed_dim=384, parameters_m=21.7, feature_layers=_SMALL_LAYERS,
        revision="48560ea39969fe44b7b2ab057de01484243a7d43",
    ),
    _record(
        "kaiko-b8", "vit_base_patch8_224", 8, embed_dim=768, parameters_m=85.8, feature_layers=_SMALL_LAYERS,
        revision="978ce1a67276e7a944d02cac6f9defe442f434b9",
    ),
    _record(
        "kaiko-b16", "vit_base_patch16_224", 16, embed_dim=768, parameters_m=85.8, feature_layers=_SMALL_LAYERS,
        revision="797c524a94c7fdae8ea33064d0ac6966ed8956bb",
    ),
    # Its position table is that of 518 px, like DINOv2's.
    _record(
        "kaiko-l14", "vit_large_patch14_reg4_dinov2", 14, 5, embed_dim=1024, parameters_m=304.4,
        feature_layers=(4, 11, 17, 23), revision="d86df45eccdb957aa7869bab7d11f8e158dcbda2",
    ),
)  # fmt: skip


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)
