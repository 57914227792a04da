"""MoCo v3 (Chen et al., ICCV 2021): the paper's MoCo-v3, taken as the ViT-B/16 of 300 epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

RECORDS = (
    EncoderSpec(
        name="moco-v3",
        family="moco",
        architecture="vit_base_patch16_224",
        architecture_options={"dynamic_img_size": True},
        embed_dim=768,
        input_multiple_px=16,
        crop_fraction=0.875,
        patch_size=16,
        n_prefix_tokens=1,
        interpolation="bilinear",
        pooling="cls",
        poolings=("cls", "mean", "cls+mean"),
        feature_layers=(2, 5, 8, 11),
        source="nyu-visionx/moco-v3-vit-b",
        revision="7d091cd70772c5c0ecf7f00b5f12ca609a99d69d",
        weights_sha256="345a04069364250ef448402363443ae8d2da68678e6a88239a8906d2325b912e",
        parameters_m=85.8,
        licence="CC-BY-NC-4.0",
        licence_url="https://github.com/facebookresearch/moco-v3/blob/main/LICENSE",
        obligations=("Non-commercial use only.", "Give credit to the authors."),
        paper="MoCo-v3",
        training_data="ImageNet-1k (1.28M photographs), self-supervised (contrastive), 300 epochs",
        notes="The paper names neither network nor epochs. A third party's copy on the hub; --weights also takes "
        "Meta's own vit-b-300ep.pth.tar, of which the trained encoder is used, not its momentum copy.",
    ),
)
_ENCODER = "base_encoder."


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Keep the trained encoder of Meta's checkpoint, and leave out projection and classification heads."""
    if any(key.startswith(_ENCODER) for key in state):
        state = {key.removeprefix(_ENCODER): tensor for key, tensor in state.items() if key.startswith(_ENCODER)}
    return {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
