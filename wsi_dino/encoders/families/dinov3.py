"""DINOv3 (Siméoni et al. 2025): the paper's encoders, from timm's, Meta's or transformers' checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.tensor_names import Rules, joined_projections, renamed_key
from wsi_dino.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from wsi_dino.encoders.backbone import Backbone

_WEB_IMAGES = "LVD-1689M: 1.7B web images, self-supervised, no medical ones chosen"
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
    "obligations": (
        "Name DINOv3 in publications of results made with it.",
        "Pass the DINOv3 License on with the weights and with models derived from them.",
        "No military use, and none under arms export rules (ITAR).",
    ),
    # Half precision lacks the range of bfloat16, in which these were trained.
    "precisions": ("fp32", "bf16"),
}
_NOTES = (
    "The default pooling is the mean of the patch tokens; Meta and transformers give CLS. Position is by rotation "
    "(RoPE), so that any multiple of 16 px is taken. --weights takes timm's, Meta's and transformers' files."
)


def _record(name: str, architecture: str, **fields: Any) -> EncoderSpec:
    texts = {"training_data": _WEB_IMAGES, "notes": _NOTES}
    return EncoderSpec(
        name=name, architecture=architecture, source=f"timm/{architecture}", **{**_SHARED, **texts, **fields}
    )


RECORDS = (
    _record(
        "dinov3-s",
        "vit_small_patch16_dinov3.lvd1689m",
        embed_dim=384,
        feature_layers=(2, 5, 8, 11),
        parameters_m=21.6,
        revision="3bf4720a82ec2066db88137180ff1f83a675cef0",
        weights_sha256="2a1ec16ae28ffa07bc0ead0241ee7df9fc26451fe6f9f839b7b3afa0a906b040",
        paper="DINOv3-S",
    ),
    _record(
        "dinov3-s-plus",
        "vit_small_plus_patch16_dinov3.lvd1689m",
        embed_dim=384,
        feature_layers=(2, 5, 8, 11),
        parameters_m=28.7,
    ),
    _record(
        "dinov3-b",
        "vit_base_patch16_dinov3.lvd1689m",
        embed_dim=768,
        feature_layers=(2, 5, 8, 11),
        parameters_m=85.6,
        revision="c6a5fb7d12bbd3cf3b0079253141c3332aaed7da",
        paper="DINOv3-B",
    ),
    _record(
        "dinov3-l",
        "vit_large_patch16_dinov3.lvd1689m",
        embed_dim=1024,
        feature_layers=(4, 11, 17, 23),
        parameters_m=303.1,
        paper="DINOv3-L",
    ),
    _record(
        "dinov3-l-sat",
        "vit_large_patch16_dinov3.sat493m",
        embed_dim=1024,
        feature_layers=(4, 11, 17, 23),
        parameters_m=303.1,
        mean=(0.430, 0.411, 0.296),
        std=(0.213, 0.156, 0.143),
        training_data="SAT-493M: satellite images, self-supervised",
        notes="DINOv3-L trained on satellite images, with their own mean and standard deviation. " + _NOTES,
    ),
    _record(
        "dinov3-h-plus",
        "vit_huge_plus_patch16_dinov3.lvd1689m",
        embed_dim=1280,
        feature_layers=(7, 15, 23, 31),
        parameters_m=840.5,
    ),
    _record(
        "dinov3-7b",
        "vit_7b_patch16_dinov3.lvd1689m",
        embed_dim=4096,
        feature_layers=(9, 19, 29, 39),
        parameters_m=6716.0,
        notes="The teacher of the others: 27 GB of weights in fp32. " + _NOTES,
    ),
)


def build(record: EncoderSpec) -> Backbone:
    """Return the network without weights."""
    from wsi_dino.encoders.backbone import TimmVit

    return TimmVit.create(record)


_QUERY_AND_VALUE_BIAS = re.compile(r".*attention\.([qv])_proj\.bias|.*\.attn\.([qv])_bias")


def fitted(record: EncoderSpec, state: Mapping[str, Tensor]) -> EncoderSpec:
    """Return `record` with the architecture that a checkpoint needs.

    Published files have zero in the biases of queries and values, and timm's networks leave them out;
    where they are not zero, timm's form with these biases is taken.

    Raises:
        WeightsError: there are such biases, and timm has no form of this network that takes them.
    """
    if not any(bool((bias != 0).any()) for bias in _query_and_value_biases(state)):
        return record
    if "_7b_" in record.architecture:
        raise WeightsError(
            f"Loading weights for {record.name}: the file has biases of queries or values that are not zero; "
            "timm has no form of this network that takes them. Expected the published file, which has none."
        )
    return record.model_copy(update={"architecture": record.architecture.replace("_dinov3.", "_dinov3_qkvb.")})


def _query_and_value_biases(state: Mapping[str, Tensor]) -> list[Tensor]:
    biases = [tensor for key, tensor in state.items() if _QUERY_AND_VALUE_BIAS.fullmatch(key)]
    joined = [tensor.chunk(3) for key, tensor in state.items() if key.endswith("attn.qkv.bias")]
    return [*biases, *(part for query, _, value in joined for part in (query, value))]


def convert(state: dict[str, Tensor], record: EncoderSpec) -> dict[str, Tensor]:
    """Rename Meta's or transformers' tensors to timm's; `record` is as `fitted` returns it."""
    renamed = _from_transformers(state) if _is_of_transformers(state) else _from_meta(state)
    if "_qkvb" in record.architecture:
        return renamed
    return {key: tensor for key, tensor in renamed.items() if not key.endswith((".attn.q_bias", ".attn.v_bias"))}


_META: Rules = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
# Fixed position tables, pre-training's mask token, and the bias masks that keep key biases at zero.
_META_UNUSED = ("rope_embed.periods", "mask_token", "qkv.bias_mask")


def _from_meta(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("qkv.bias"):
            # Key biases are masked out by Meta's own code, whatever the file holds.
            query, _, value = tensor.chunk(3)
            attention = key.removesuffix("qkv.bias")
            result |= {f"{attention}q_bias": query, f"{attention}v_bias": value}
        elif not key.endswith(_META_UNUSED) and not key.startswith("local_cls_norm"):
            result[renamed_key(key, _META)] = tensor
    return result


_TRANSFORMERS: Rules = (
    (r"^(?:model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"\.attention\.([qv])_proj\.bias$", r".attn.\1_bias"),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
_PLAIN_MLP: Rules = ((r"\.mlp\.up_proj\.", ".mlp.fc1."),)
_GATED_MLP: Rules = ((r"\.mlp\.gate_proj\.", ".mlp.fc1_g."), (r"\.mlp\.up_proj\.", ".mlp.fc1_x."))
_TRANSFORMERS_UNUSED = ("mask_token", "inv_freq")


def _is_of_transformers(state: Mapping[str, Tensor]) -> bool:
    return any(key.endswith("attention.q_proj.weight") for key in state)


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    is_gated = any(".gate_proj." in key for key in state)
    rules = _TRANSFORMERS + (_GATED_MLP if is_gated else _PLAIN_MLP)
    used = {key: tensor for key, tensor in state.items() if not key.endswith(_TRANSFORMERS_UNUSED)}
    return joined_projections({renamed_key(key, rules): tensor for key, tensor in used.items()})
