"""Masked autoencoders (He et al., CVPR 2022): the paper's MAE-ViT-B/16 and MAE-ViT-L/16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.tensor_names import from_transformers, is_of_transformers

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_SHARED: dict[str, Any] = {
    "family": "mae",
    "architecture_options": {"dynamic_img_size": True},
    "input_multiple_px": 16,
    "crop_fraction": 0.9,
    "patch_size": 16,
    "n_prefix_tokens": 1,
    "pooling": "cls",
    "poolings": ("cls", "mean", "cls+mean"),
    "licence": "CC-BY-NC-4.0",
    "licence_url": "https://creativecommons.org/licenses/by-nc/4.0/",
    "obligations": ("Non-commercial use only.", "Give credit to the authors."),
    "training_data": "ImageNet-1k (1.28M photographs), self-supervised (masked autoencoding)",
    "notes": "The encoder as pre-trained, not the one fine-tuned for classification. --weights takes timm's, Meta's "
    "(mae_pretrain_vit_*.pth) and transformers' files; a decoder in them is left out.",
}
RECORDS = (
    EncoderSpec(
        name="mae-b",
        architecture="vit_base_patch16_224.mae",
        embed_dim=768,
        feature_layers=(2, 5, 8, 11),
        source="timm/vit_base_patch16_224.mae",
        revision="9085cfddecbe125d73b95d25b7d4eb4832f216fa",
        parameters_m=85.8,
        paper="MAE-ViT-B/16",
        **_SHARED,
    ),
    EncoderSpec(
        name="mae-l",
        architecture="vit_large_patch16_224.mae",
        embed_dim=1024,
        feature_layers=(4, 11, 17, 23),
        source="timm/vit_large_patch16_224.mae",
        revision="4b308043edaf05585fd5762ea4fb78cf75d9ac4c",
        parameters_m=303.3,
        paper="MAE-ViT-L/16",
        **_SHARED,
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.position_table import PlainTableVit

    return PlainTableVit.create(record)


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Leave out the decoder and rename transformers' tensors; Meta's and timm's have the same names."""
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith(("decoder", "mask_token"))}
    return from_transformers(encoder) if is_of_transformers(encoder) else encoder
