"""ResNet-50 trained on ImageNet: whole, and cut after its third stage as CLAM does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_WHOLE = EncoderSpec(
    name="resnet50",
    family="resnet",
    architecture="resnet50.tv_in1k",
    embed_dim=2048,
    input_multiple_px=32,
    crop_fraction=0.875,
    interpolation="bilinear",
    pooling="avg",
    poolings=("avg",),
    feature_layers=(1, 2, 3, 4),
    source="timm/resnet50.tv_in1k",
    revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
    weights_sha256="5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    parameters_m=23.5,
    licence="BSD-3-Clause",
    licence_url="https://github.com/pytorch/vision/blob/main/LICENSE",
    paper="ResNet50 (ImageNet)",
    training_data="ImageNet-1k (1.28M photographs), supervised",
    notes="Average of the fourth stage. The paper does not say after which stage its ResNet50 is cut.",
)
RECORDS = (
    _WHOLE,
    _WHOLE.model_copy(
        update={
            "name": "resnet50-clam",
            "embed_dim": 1024,
            "feature_layers": (1, 2, 3),
            "parameters_m": 8.5,
            "notes": "Average of the third stage: the features that CLAM's published work uses. The paper does not say "
            "after which stage its ResNet50 is cut.",
        }
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights; for ``resnet50-clam`` without its fourth stage."""
    from torch import nn

    from wsi_dino.encoders.backbone import TimmCnn

    backbone = TimmCnn.create(record)
    if record.embed_dim == 1024:
        backbone.model.layer4 = nn.Identity()
    return backbone


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Leave out the classifier and, for ``resnet50-clam``, the fourth stage."""
    unused = ("fc.", "layer4.") if record.embed_dim == 1024 else ("fc.",)
    return {key: tensor for key, tensor in state.items() if not key.startswith(unused)}
