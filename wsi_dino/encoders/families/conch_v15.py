"""CONCH v1.5, the tile encoder of TITAN (Ding et al., Nature Medicine 2025): a ViT-L/16 and an attentional pooler.

Written from the published description and the names, shapes and settings of the checkpoint: CoCa's tower
as in CONCH, with a larger trunk with layer scales, projections without biases in the pooler, and a
position table for 224 px that is resampled to 448 px in the way of DINO's first code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="conch-v1.5",
        family="conch_v15",
        architecture="vit_large_patch16_224",
        architecture_options={"init_values": 1e-6, "dynamic_img_size": True},
        embed_dim=768,
        input_px=448,
        input_multiple_px=16,
        patch_size=16,
        n_prefix_tokens=1,
        interpolation="bilinear",
        pooling="attention",
        poolings=("attention",),
        feature_layers=(4, 11, 17, 23),
        source="MahmoodLab/conchv1_5",
        revision="3e5766a5d1500d53c73c03005e24c30c1f27be13",
        weights_file="pytorch_model_vision.bin",
        parameters_m=306.1,
        licence="CC-BY-NC-ND-4.0",
        licence_url="https://huggingface.co/MahmoodLab/conchv1_5",
        obligations=(
            "Non-commercial, academic research only; that includes models trained on its outputs.",
            "Give credit to the authors.",
            "Do not pass on the weights: each user registers.",
        ),
        gated=True,
        training_data="1.26M histology image-caption pairs (CoCa)",
        notes="Research use only; the terms must be accepted on the page before the weights can be fetched. TITAN "
        "takes its vectors of tiles of 512 px at 20x, resized to 448 px. The same weights lie in MahmoodLab/TITAN "
        "as conch_v1_5_pytorch_model.bin, which --weights takes too. Names and settings are those that public "
        "loaders of the checkpoint use; they were not tried on the gated file itself.",
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.attentional_pooler import PooledVit
    from wsi_dino.encoders.backbone import create_timm_network
    from wsi_dino.encoders.offset_positions import use_offset_positions

    trunk = create_timm_network(record)
    use_offset_positions(trunk)
    return PooledVit(trunk, record.embed_dim, record.n_prefix_tokens, bias=False)


_PARTS = {
    "trunk.": "model.",
    "attn_pool_contrast.to_q.weight": "pooler.attn.q_proj_weight",
    "attn_pool_contrast.to_out.weight": "pooler.attn.out_proj.weight",
    "attn_pool_contrast.": "pooler.",
    "ln_contrast.": "norm.",
}
_KEYS_AND_VALUES = "attn_pool_contrast.to_kv.weight"


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Rename the checkpoint's tensors and split the joint projection of keys and values."""
    result = {_renamed(key): tensor for key, tensor in state.items() if key != _KEYS_AND_VALUES}
    if _KEYS_AND_VALUES in state:
        keys, values = state[_KEYS_AND_VALUES].chunk(2)
        result |= {"pooler.attn.k_proj_weight": keys, "pooler.attn.v_proj_weight": values}
    return result


def _renamed(key: str) -> str:
    for old, new in _PARTS.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
