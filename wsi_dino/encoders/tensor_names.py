"""What others call the tensors of a vision transformer, in timm's words. Torch is imported only to join tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Rules = tuple[tuple[str, str], ...]

# The transformers library's ViT, ViT-MAE and DINOv2: names in published files, and those of its version 5.
_TRANSFORMERS: Rules = (
    (r"^(?:vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"\.attention\.attention\.(q)uery\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(k)ey\.", r".attention.\1_proj."),
    (r"\.attention\.attention\.(v)alue\.", r".attention.\1_proj."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_PROJECTION = re.compile(r"(blocks\.\d+)\.attention\.([qkv])_proj\.(weight|bias)")


def is_of_transformers(keys: Iterable[str]) -> bool:
    """Return whether tensors are named as the transformers library names those of its vision models.

    Examples:
        >>> is_of_transformers(["vit.embeddings.cls_token"]), is_of_transformers(["cls_token"])
        (True, False)
    """
    return any(key.endswith("embeddings.cls_token") for key in keys)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ViT, ViT-MAE or DINOv2 of the transformers library; what it masks patches with is left out."""
    renamed = {renamed_key(key, _TRANSFORMERS): tensor for key, tensor in state.items()}
    return joined_projections({key: tensor for key, tensor in renamed.items() if not key.endswith("mask_token")})


def renamed_key(key: str, rules: Rules) -> str:
    """Apply every rule (pattern, replacement) in turn.

    Examples:
        >>> renamed_key("encoder.layer.3.layernorm_before.weight", _TRANSFORMERS)
        'blocks.3.norm1.weight'
    """
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def joined_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join ``blocks.N.attention.{q,k,v}_proj`` into timm's ``blocks.N.attn.qkv``.

    Where one of the three is absent the others are left out, so that strict loading names what is missing.
    """
    import torch

    result: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        projection = _PROJECTION.fullmatch(key)
        if projection is None:
            result[key] = tensor
        else:
            parts.setdefault(f"{projection[1]}.attn.qkv.{projection[3]}", {})[projection[2]] = tensor
    for key, found in parts.items():
        if set(found) == set("qkv"):
            result[key] = torch.cat([found[name] for name in "qkv"])
    return result


def with_class_position_folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the position of the CLS token to the token itself, as timm's networks with registers expect.

    ``pos_embed`` (1, 1 + n_patches, dim) becomes (1, n_patches, dim); the network computes the same.
    """
    if "pos_embed" not in state or "cls_token" not in state:
        return dict(state)
    table = state["pos_embed"]
    return {**state, "cls_token": state["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}
