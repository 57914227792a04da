"""BiomedCLIP's image tower (Zhang et al. 2023): timm's ViT-B/16 and a linear projection; needs no open_clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="biomedclip",
        family="biomedclip",
        architecture="vit_base_patch16_224",
        architecture_options={"dynamic_img_size": True},
        embed_dim=512,
        input_px=224,
        input_multiple_px=16,
        patch_size=16,
        n_prefix_tokens=1,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        pooling="projected",
        poolings=("projected", "cls", "mean", "cls+mean"),
        pooling_dims={"cls": 768, "mean": 768, "cls+mean": 1536},
        feature_layers=(2, 5, 8, 11),
        source="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        revision="9f341de24bfb00180f1b847274256e9b65a3a32e",
        weights_file="open_clip_pytorch_model.bin",
        weights_sha256="52cc993c5c5ff962bd0c60931874bc001e7e9b41666a385530f4a036294576be",
        parameters_m=86.2,
        licence="MIT",
        licence_url="https://huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        obligations=("The copyright notice and the licence text go with every copy of the weights (MIT).",),
        paper="BiomedCLIP",
        training_data="PMC-15M: 15M figure-caption pairs of articles in PubMed Central, contrastive with PubMedBERT",
        notes="The default is the projection into the space shared with text, not normalised to length one: what "
        "open_clip's `encode_image` gives. Its authors intend it for research and put any deployed use out of scope.",
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.projected_vit import ProjectedVit

    return ProjectedVit.create(record)


_PARTS = {"visual.trunk.": "model.", "visual.head.proj.": "projection."}


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Keep the image tower of an open_clip checkpoint and leave out the text's; other names pass unchanged."""
    if not any(key.startswith("visual.") for key in state):
        return state
    tower = {key: tensor for key, tensor in state.items() if key.startswith("visual.")}
    return {_renamed(key): tensor for key, tensor in tower.items()}


def _renamed(key: str) -> str:
    for old, new in _PARTS.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
