"""Prov-GigaPath's tile encoder (Xu et al., Nature 2024): DINOv2's giant with patches of 16 px."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="gigapath",
        family="gigapath",
        architecture="vit_giant_patch14_dinov2",
        architecture_options={"img_size": 224, "patch_size": 16, "dynamic_img_size": True},
        embed_dim=1536,
        input_multiple_px=16,
        crop_fraction=0.875,
        patch_size=16,
        n_prefix_tokens=1,
        pooling="cls",
        poolings=("cls", "mean", "cls+mean"),
        feature_layers=(9, 19, 29, 39),
        source="prov-gigapath/prov-gigapath",
        weights_file="pytorch_model.bin",
        parameters_m=1135.0,
        licence="terms of the model page",
        licence_url="https://huggingface.co/prov-gigapath/prov-gigapath",
        obligations=("Research use, under the terms accepted on the model page.",),
        gated=True,
        training_data="1.3B tiles of 171,189 H&E and IHC slides, self-supervised (DINOv2)",
        notes="The tile encoder alone, without the encoder of whole slides. Its authors resize tiles of 256 px and "
        "keep the middle 224 px; here tiles are shown whole.",
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)
