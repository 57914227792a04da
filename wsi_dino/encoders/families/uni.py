"""UNI and UNI2-h: vision transformers trained with DINOv2 on histology (Chen et al., Nature Medicine 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from wsi_dino.encoders.backbone import Backbone

_SHARED: dict[str, Any] = {
    "family": "uni",
    "pooling": "cls",
    "poolings": ("cls", "mean", "cls+mean"),
    "weights_file": "pytorch_model.bin",
    "licence": "CC-BY-NC-ND-4.0",
    "obligations": (
        "Non-commercial, academic research only; that includes models trained on its outputs.",
        "Give credit to the authors.",
        "Do not pass on the weights: each user registers.",
    ),
    "gated": True,
    "notes": "The terms must be accepted on the page before the weights can be fetched.",
}
RECORDS = (
    EncoderSpec(
        name="uni",
        architecture="vit_large_patch16_224",
        architecture_options={"init_values": 1e-5, "dynamic_img_size": True},
        embed_dim=1024,
        input_multiple_px=16,
        patch_size=16,
        n_prefix_tokens=1,
        feature_layers=(4, 11, 17, 23),
        source="MahmoodLab/uni",
        revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721",
        parameters_m=303.4,
        licence_url="https://huggingface.co/MahmoodLab/uni",
        paper="UNI",
        training_data="Mass-100K: 100M tiles of 100,426 H&E slides, 20 tissues, self-supervised (DINOv2)",
        **_SHARED,
    ),
    EncoderSpec(
        name="uni2-h",
        # DINOv2's giant (gated layers) with fewer blocks and more registers.
        architecture="vit_giant_patch14_reg4_dinov2",
        architecture_options={"img_size": 224, "depth": 24, "reg_tokens": 8, "dynamic_img_size": True},
        embed_dim=1536,
        input_multiple_px=14,
        patch_size=14,
        n_prefix_tokens=9,
        feature_layers=(5, 11, 17, 23),
        source="MahmoodLab/UNI2-h",
        # Run in bf16 by those who publish pipelines with it; fp16 is not shown to be safe.
        precisions=("fp32", "bf16"),
        parameters_m=681.4,
        licence_url="https://huggingface.co/MahmoodLab/UNI2-h",
        training_data="over 200M tiles of over 350,000 H&E and IHC slides, self-supervised (DINOv2)",
        **_SHARED,
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)
