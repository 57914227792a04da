"""UNI: a ViT-L/16 trained with DINOv2 on histology (Chen et al., Nature Medicine 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="uni",
        family="uni",
        architecture="vit_large_patch16_224",
        architecture_options={"init_values": 1e-5, "dynamic_img_size": True},
        embed_dim=1024,
        input_multiple_px=16,
        patch_size=16,
        n_prefix_tokens=1,
        pooling="cls",
        poolings=("cls", "mean", "cls+mean"),
        feature_layers=(4, 11, 17, 23),
        source="MahmoodLab/uni",
        revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721",
        weights_file="pytorch_model.bin",
        parameters_m=303.4,
        licence="CC-BY-NC-ND-4.0",
        licence_url="https://huggingface.co/MahmoodLab/uni",
        gated=True,
        training_data="Mass-100K: 100M tiles of 100,426 H&E slides, 20 tissues, self-supervised (DINOv2)",
        notes="Research use only; the terms must be accepted on the page before the weights can be fetched.",
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)
