"""Phikon-v2 (Filiot et al. 2024): a ViT-L/16 trained with DINOv2 on histology."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.tensor_names import from_transformers, is_of_transformers

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="phikon-v2",
        family="phikon",
        architecture="vit_large_patch16_224",
        architecture_options={"init_values": 1e-5, "dynamic_img_size": True},
        embed_dim=1024,
        input_multiple_px=16,
        patch_size=16,
        n_prefix_tokens=1,
        pooling="cls",
        poolings=("cls", "mean", "cls+mean"),
        feature_layers=(4, 11, 17, 23),
        source="owkin/phikon-v2",
        revision="419e8285b80eac3b60beca0d9b91942d48ad7b8e",
        parameters_m=303.4,
        licence="Owkin non-commercial licence",
        licence_url="https://huggingface.co/owkin/phikon-v2/blob/main/LICENSE.pdf",
        obligations=("Non-commercial use only.",),
        training_data="PANCAN-XL: tiles of public histology collections (TCGA, CPTAC, GTEx and others), "
        "self-supervised (DINOv2)",
        notes="--weights takes the published file, named as transformers names a DINOv2, and timm's names.",
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.position_table import PlainTableVit

    return PlainTableVit.create(record)


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Rename transformers' tensors to timm's."""
    return from_transformers(state) if is_of_transformers(state) else state
