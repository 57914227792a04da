"""DINOv3 (Siméoni et al. 2025): the paper's encoders, from timm's, Meta's or transformers' checkpoints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_SHARED: dict[str, Any] = {
    "family": "dinov3",
    "input_multiple_px": 16,
    "patch_size": 16,
    "n_prefix_tokens": 5,
    # timm's own default is the mean of the patch tokens too; Meta and transformers give CLS.
    "pooling": "mean",
    "poolings": ("cls", "mean", "cls+mean"),
    "licence": "DINOv3 License",
    "licence_url": "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    "training_data": "LVD-1689M: 1.7B web images, self-supervised, no medical ones chosen",
    "notes": "Name DINOv3 in publications; the licence travels with redistributed weights and derived models; "
    "no military use. The default pooling is the mean of the patch tokens, as in the paper.",
    # Half precision lacks the range of bfloat16, in which these were trained.
    "precisions": ("fp32", "bf16"),
}


def _record(name: str, architecture: str, **fields: Any) -> EncoderSpec:
    return EncoderSpec(name=name, architecture=architecture, source=f"timm/{architecture}", **_SHARED, **fields)


RECORDS = (
    _record(
        "dinov3-s",
        "vit_small_patch16_dinov3.lvd1689m",
        embed_dim=384,
        feature_layers=(2, 5, 8, 11),
        parameters_m=21.6,
        revision="3bf4720a82ec2066db88137180ff1f83a675cef0",
        weights_sha256="2a1ec16ae28ffa07bc0ead0241ee7df9fc26451fe6f9f839b7b3afa0a906b040",
    ),
    _record(
        "dinov3-b",
        "vit_base_patch16_dinov3.lvd1689m",
        embed_dim=768,
        feature_layers=(2, 5, 8, 11),
        parameters_m=85.6,
        revision="c6a5fb7d12bbd3cf3b0079253141c3332aaed7da",
    ),
    _record(
        "dinov3-l",
        "vit_large_patch16_dinov3.lvd1689m",
        embed_dim=1024,
        feature_layers=(4, 11, 17, 23),
        parameters_m=303.1,
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Rename Meta's or transformers' tensors to timm's; timm's own pass unchanged.

    Raises:
        WeightsError: the query or value biases are not zero, so that timm's network without them
            would give other features.
    """
    if any(key.endswith("attention.q_proj.weight") for key in state):
        return _from_transformers(state, record)
    if "storage_tokens" in state:
        return _from_meta(state, record)
    return state


_META_NAMES = {"storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
# Fixed position tables, pre-training's mask token, and the bias masks that keep key biases at zero.
_META_UNUSED = ("rope_embed.periods", "mask_token", "qkv.bias_mask")


def _from_meta(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    result = {}
    for key, tensor in state.items():
        if key.endswith("qkv.bias"):
            # Key biases are masked out by Meta's own code, whatever the file holds.
            query, _, value = tensor.chunk(3)
            _require_zero(key, query, record)
            _require_zero(key, value, record)
        elif not key.endswith(_META_UNUSED) and not key.startswith("local_cls_norm"):
            result[_replaced(key, _META_NAMES)] = tensor
    return result


_TRANSFORMERS_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.": "patch_embed.proj.",
    "attention.o_proj.": "attn.proj.",
    "layer_scale1.lambda1": "gamma_1",
    "layer_scale2.lambda1": "gamma_2",
    "mlp.up_proj.": "mlp.fc1.",
    "mlp.down_proj.": "mlp.fc2.",
}
_TRANSFORMERS_UNUSED = ("mask_token", "inv_freq")
_PROJECTION = re.compile(r"blocks\.\d+\.attention\.([qkv])_proj\.(weight|bias)")


def _from_transformers(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    import torch

    result: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        block_key = re.sub(r"^(?:model\.)?layer\.", "blocks.", key)
        projection = _PROJECTION.fullmatch(block_key)
        if projection is None:
            if not key.endswith(_TRANSFORMERS_UNUSED):
                result[_replaced(block_key, _TRANSFORMERS_NAMES)] = tensor
        elif projection[2] == "bias":
            _require_zero(key, tensor, record)
        else:
            block = block_key.split(".attention.")[0]
            projections.setdefault(block, {})[projection[1]] = tensor
    for block, parts in projections.items():
        if set(parts) == set("qkv"):  # otherwise the missing key is reported by the strict loading
            result[f"{block}.attn.qkv.weight"] = torch.cat([parts[part] for part in "qkv"])
    return result


def _replaced(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key


def _require_zero(key: str, bias: Tensor, record: EncoderSpec) -> None:
    if bool((bias != 0).any()):
        raise WeightsError(
            f"Loading weights for {record.name}: {key} is not zero, but every published DINOv3 has zero there. "
            "This is another network; give it as timm/NAME (timm's names ending in dinov3_qkvb have these biases)."
        )
