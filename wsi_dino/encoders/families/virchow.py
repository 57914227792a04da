"""Virchow2 (Zimmermann et al. 2024): a ViT-H/14 with registers, trained with DINOv2 on histology."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="virchow2",
        family="virchow",
        # DINOv2's giant has the same gated layers; the sizes are a ViT-H's. Registers have positions here.
        architecture="vit_giant_patch14_reg4_dinov2",
        architecture_options={
            "img_size": 224, "embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 5.3375,
            "no_embed_class": False, "dynamic_img_size": True,
        },
        embed_dim=2560,
        input_multiple_px=14,
        patch_size=14,
        n_prefix_tokens=5,
        pooling="cls+mean",
        poolings=("cls+mean", "cls", "mean"),
        feature_layers=(7, 15, 23, 31),
        source="paige-ai/Virchow2",
        revision="3158645804b69e3f3bc4439d4116edddf0840a72",
        parameters_m=631.2,
        licence="CC-BY-NC-ND-4.0",
        licence_url="https://huggingface.co/paige-ai/Virchow2",
        obligations=(
            "Non-commercial, academic research only; that includes models trained on its outputs.",
            "Give credit to the authors.",
            "Do not pass on the weights: each user registers.",
        ),
        gated=True,
        training_data="3.1M histology slides, self-supervised (DINOv2)",
        notes="The terms must be accepted on the page before the weights can be fetched. The default is CLS beside "
        "the mean of the patch tokens, as its authors recommend: twice 1280 numbers.",
    ),
)  # fmt: skip


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)
