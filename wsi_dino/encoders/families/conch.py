"""CONCH's image tower (Lu et al., Nature Medicine 2024): a ViT-B/16 and an attentional pooler.

Written from the published description (CoCa's tower: the tokens of a ViT are pooled by one learned
query through multi-head attention, then layer-normalised) and the names and shapes of the checkpoint,
so that its authors' package, whose licence forbids derivatives, is not needed. The vector is the one
before the projection to the text space, as their documentation recommends for linear probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_AT_448_PX = EncoderSpec(
    name="conch",
    family="conch",
    architecture="vit_base_patch16_224",
    # The position table of the checkpoint is that of 448 px; other sizes resample it.
    architecture_options={"img_size": 448, "dynamic_img_size": True},
    embed_dim=512,
    input_px=448,
    input_multiple_px=16,
    patch_size=16,
    n_prefix_tokens=1,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    pooling="attention",
    poolings=("attention",),
    feature_layers=(2, 5, 8, 11),
    source="MahmoodLab/conch",
    revision="f9ca9f877171a28ade80228fb195ac5d79003357",
    weights_file="pytorch_model.bin",
    weights_sha256="40a9644b9ba0e83a74576e0a5e5f7313599fa9c9cdaf3c20f8a3e271b0e9ae7c",
    parameters_m=87.6,
    licence="CC-BY-NC-ND-4.0",
    licence_url="https://huggingface.co/MahmoodLab/CONCH",
    obligations=(
        "Non-commercial, academic research only; that includes models trained on its outputs.",
        "Give credit to the authors.",
        "Do not pass on the weights: each user registers.",
    ),
    gated=True,
    paper="CONCH",
    training_data="1.17M histology image-caption pairs (CoCa), after self-supervision on tiles",
    notes="The terms must be accepted on the page. At 448 px, as its authors prepare images; conch-224 is the same "
    "network at 224 px, and its features differ.",
)
RECORDS = (
    _AT_448_PX,
    _AT_448_PX.model_copy(
        update={
            "name": "conch-224",
            "input_px": 224,
            "notes": "The terms must be accepted on the page. At 224 px, as CLAM feeds it: the position table is "
            "resampled, and features differ from those of conch at 448 px.",
        }
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.attentional_pooler import PooledVit

    return PooledVit.create(record)


_PARTS = {"visual.trunk.": "model.", "visual.attn_pool_contrast.": "pooler.", "visual.ln_contrast.": "norm."}


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Keep the image tower up to its contrast vector; leave out text, captions and projections."""
    result = {}
    for key, tensor in state.items():
        for old, new in _PARTS.items():
            if key.startswith(old):
                result[new + key.removeprefix(old)] = tensor
    return result
