"""Lunit's ViT-S/8 trained with DINO on histology (Kang et al., CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="lunit-s8",
        family="lunit",
        architecture="vit_small_patch8_224",
        architecture_options={"dynamic_img_size": True},
        embed_dim=384,
        input_multiple_px=8,
        crop_fraction=0.9,
        patch_size=8,
        n_prefix_tokens=1,
        mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464),
        pooling="cls",
        poolings=("cls", "mean", "cls+mean"),
        feature_layers=(2, 5, 8, 11),
        source="1aurent/vit_small_patch8_224.lunit_dino",
        revision="c23bc01cfbe022bc1f2a8a9306125a07818e4eb4",
        parameters_m=21.7,
        licence="lunit-non-commercial",
        licence_url="https://github.com/lunit-io/benchmark-ssl-pathology/blob/main/LICENSE",
        obligations=("Non-commercial use only.",),
        training_data="histology tiles of more than 36,000 slides, self-supervised (DINO)",
        notes="Patches of 8 px: four times the tokens, and the time, of a ViT-S/16.",
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)
