"""ResNet-50 trained without labels on ImageNet: the paper's SimCLR, SwAV and BYOL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_SHARED: dict[str, Any] = {
    "family": "resnet_selfsupervised",
    "architecture": "resnet50",
    "embed_dim": 2048,
    "input_multiple_px": 32,
    "crop_fraction": 0.875,
    "pooling": "avg",
    "poolings": ("avg",),
    "feature_layers": (1, 2, 3, 4),
    "parameters_m": 23.5,
}
_TRAINED_ON = "ImageNet-1k (1.28M photographs), self-supervised ({how})"
RECORDS = (
    EncoderSpec(
        name="simclr",
        interpolation="bilinear",
        # Trained on grey values of 0..1 as they are.
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        source="lightly-ai/simclrv1-imagenet1k-resnet50-1x",
        weights_file="resnet50-1x.pth",
        licence="Apache-2.0",
        licence_url="https://huggingface.co/lightly-ai/simclrv1-imagenet1k-resnet50-1x",
        paper="SimCLR",
        training_data=_TRAINED_ON.format(how="contrastive"),
        notes="The paper names neither network nor epochs: taken as SimCLR's ResNet-50 (1x), its published TensorFlow "
        "weights in PyTorch's form by tonylins/simclr-converter. --weights takes torchvision's names.",
        **_SHARED,
    ),
    EncoderSpec(
        name="swav",
        interpolation="bilinear",
        source="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
        weights_file="swav_800ep_pretrain.pth.tar",
        licence="that of facebookresearch/swav",
        licence_url="https://github.com/facebookresearch/swav/blob/main/LICENSE",
        obligations=("Keep to the licence file of facebookresearch/swav.",),
        paper="SwAV",
        training_data=_TRAINED_ON.format(how="clustering") + ", 800 epochs",
        notes="The paper names neither network nor epochs: taken as the best published ResNet-50. Its file is not on "
        "the hub: download it from the source and give it by --weights. Prototypes and projection are left out.",
        **_SHARED,
    ),
    EncoderSpec(
        name="byol",
        # Convolutions and pooling pad as TensorFlow and Haiku do: more at the bottom and right.
        architecture_options={"pads_as_tensorflow": True},
        source="https://github.com/google-deepmind/deepmind-research/tree/master/byol",
        weights_file="pretrain_res50x1.pth.tar",
        is_public=False,
        licence="Apache-2.0",
        licence_url="https://github.com/google-deepmind/deepmind-research/blob/master/LICENSE",
        paper="BYOL",
        training_data=_TRAINED_ON.format(how="bootstrap"),
        notes="Published as a pickle for JAX only (pretrain_res50x1.pkl), which is not read here. Convert it with "
        "chigur/byol-convert and give pretrain_res50x1.pth.tar by --weights: torchvision's names are taken.",
        **_SHARED,
    ),
)
# Heads that training needed; vectors are taken before them.
_HEADS = ("fc.", "projection_head.", "prototypes.")


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmCnn

    plain = record.model_copy(update={"architecture_options": {}})
    backbone = TimmCnn.create(plain)
    if record.architecture_options.get("pads_as_tensorflow"):
        from wsi_dino.encoders.tensorflow_padding import pad_as_tensorflow

        pad_as_tensorflow(backbone)
    return backbone


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Leave out the heads; the rest has torchvision's names, which are timm's."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(_HEADS)}
