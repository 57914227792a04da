"""Attention whose projections are linear layers that can be seen, changed and adapted. Imports torch."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

# Poolers attend with queries of their own; they belong to no block.
_POOLERS = frozenset({"pooler", "attn_pool", "attn_pool_contrastive", "attnpool"})


class SplitAttention(nn.Module):
    """The function of torch's `nn.MultiheadAttention` for self-attention, with a layer `qkv` and a layer `proj`.

    torch's own passes the tensors of its projections to one fused function, so that nothing put around a
    projection would ever be called.
    """

    def __init__(self, dim: int, n_heads: int, *, has_bias: bool, batch_first: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=has_bias)
        self.proj = nn.Linear(dim, dim, bias=has_bias)
        self.n_heads, self.batch_first = n_heads, batch_first

    @classmethod
    def of(cls, fused: nn.MultiheadAttention) -> Self:
        """Return the same function with the tensors of `fused`."""
        has_bias = fused.in_proj_bias is not None
        split = cls(fused.embed_dim, fused.num_heads, has_bias=has_bias, batch_first=fused.batch_first)
        split.qkv.weight, split.proj.weight = fused.in_proj_weight, fused.out_proj.weight
        if has_bias:
            split.qkv.bias, split.proj.bias = fused.in_proj_bias, fused.out_proj.bias
        return split

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, need_weights: bool = False,
        attn_mask: Tensor | None = None, **_: object,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Return (batch, n_tokens, dim) and None for `query` of the same shape (tokens first, where it was so)."""
        x = query if self.batch_first else query.transpose(0, 1)
        batch, n_tokens, dim = x.shape
        parts = self.qkv(x).view(batch, n_tokens, 3, self.n_heads, dim // self.n_heads).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # there True hides, here it shows
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=attn_mask)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, n_tokens, dim))
        return (result if self.batch_first else result.transpose(0, 1)), None


def split_attentions(network: nn.Module) -> int:
    """Replace torch's fused self-attention in every block of `network`, in place.

    Returns:
        How many were replaced.
    """
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.MultiheadAttention) and _is_of_a_block(name, module)
    ]
    for name in found:
        parent, _, child = name.rpartition(".")
        fused = network.get_submodule(name)
        if isinstance(fused, nn.MultiheadAttention):
            setattr(network.get_submodule(parent), child, SplitAttention.of(fused).train(fused.training))
    return len(found)


def _is_of_a_block(name: str, attention: nn.MultiheadAttention) -> bool:
    plain = attention.in_proj_weight is not None and attention.bias_k is None and not attention.add_zero_attn
    return plain and not _POOLERS & set(name.split("."))
