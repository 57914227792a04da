"""Vision transformers for a CPU: less memory traffic around the matrix products, the same function. Imports torch.

In bf16 only the branches of the blocks (attention, MLP), where the work is, are rounded. The stream that they
add to stays in fp32: rounding it after every addition turns the embedding 1.6 times as far, and is hardly faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Up to here two batched products and a softmax beat torch's fused attention on a CPU (1.8x at 201
# tokens); beyond, the matrix of scores leaves the cache and the fused one wins.
_MAX_TOKENS_UNFUSED = 640


def fold_layer_scales(network: nn.Module) -> int:
    """Multiply every layer scale into the linear layer before it; `network` (timm's) is changed in place.

    Returns:
        How many were folded.
    """
    n_folded = 0
    for block in network.modules():
        n_folded += _fold_attributes(block) + _fold_modules(block)
    return n_folded


def _fold_attributes(block: Any) -> int:
    """Fold ``gamma_1`` and ``gamma_2``, as timm's Eva (DINOv3) holds them."""
    n_folded = 0
    for scale_name, layer in (("gamma_1", _last_of_attention(block)), ("gamma_2", _last_of_mlp(block))):
        scale = getattr(block, scale_name, None)
        if isinstance(scale, nn.Parameter) and layer is not None:
            _scale_rows(layer, scale)
            setattr(block, scale_name, None)
            n_folded += 1
    return n_folded


def _fold_modules(block: Any) -> int:
    """Fold ``ls1`` and ``ls2``, as timm's VisionTransformer holds them."""
    n_folded = 0
    for scale_name, layer in (("ls1", _last_of_attention(block)), ("ls2", _last_of_mlp(block))):
        scale = getattr(getattr(block, scale_name, None), "gamma", None)
        if isinstance(scale, nn.Parameter) and layer is not None:
            _scale_rows(layer, scale)
            setattr(block, scale_name, nn.Identity())
            n_folded += 1
    return n_folded


def _last_of_attention(block: Any) -> nn.Linear | None:
    layer = getattr(getattr(block, "attn", None), "proj", None)
    return layer if isinstance(layer, nn.Linear) else None


def _last_of_mlp(block: Any) -> nn.Linear | None:
    layer = getattr(getattr(block, "mlp", None), "fc2", None)
    return layer if isinstance(layer, nn.Linear) else None


def _scale_rows(layer: nn.Linear, scale: Tensor) -> None:
    layer.weight.data.mul_(scale.data[:, None])
    if layer.bias is not None:
        layer.bias.data.mul_(scale.data)


def choose_cpu_attention(network: nn.Module, n_tokens: int) -> None:
    """Take, for every attention of `network` (timm's), what is fastest on a CPU for so many tokens."""
    unfused = n_tokens <= _MAX_TOKENS_UNFUSED
    for parent in list(network.modules()):
        attention = getattr(parent, "attn", None)
        if attention is None:
            continue
        if _is_plain_rotary(attention):
            parent.attn = RotaryAttention(attention, unfused)  # type: ignore[assignment]
        elif hasattr(attention, "fused_attn"):
            attention.fused_attn = not unfused


def _is_plain_rotary(attention: Any) -> bool:
    """Return whether this is DINOv3's attention: fused projection without biases, half-turned RoPE, no extras."""
    return (
        type(attention).__name__ == "EvaAttention"
        and attention.qkv is not None
        and attention.q_bias is None
        and attention.rotate_half
        and attention.gate is None
        and all(isinstance(part, nn.Identity) for part in (attention.q_norm, attention.k_norm, attention.norm))
    )


class RotaryAttention(nn.Module):
    """DINOv3's attention with the position rotation done in place on all tokens at once.

    Prefix tokens are turned by an angle of zero instead of being cut off and joined again.
    """

    def __init__(self, attention: Any, unfused: bool) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.n_heads, self.n_prefix_tokens = attention.num_heads, attention.num_prefix_tokens
        self.unfused = unfused
        # The scale of the scores, moved into the queries' projection; exact where it is a power of two.
        self.qkv.weight.data[: self.proj.in_features].mul_(attention.scale)

    def forward(self, x: Tensor, rope: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Return (batch, n_tokens, dim) for `x` of the same shape; `rope` (n_patches, 2 * head_dim) is sine, cosine."""
        batch, n_tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, n_tokens, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        turned = self._turned(qkv[:2], rope.to(x.dtype))
        if self.unfused:
            scores = torch.matmul(turned[0], turned[1].transpose(-1, -2)).softmax(-1)
            mixed = torch.matmul(scores, qkv[2])
        else:
            mixed = functional.scaled_dot_product_attention(turned[0], turned[1], qkv[2], scale=1.0)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, n_tokens, -1))
        return result

    def _turned(self, queries_and_keys: Tensor, rope: Tensor) -> Tensor:
        """Return (2, batch, n_heads, n_tokens, head_dim), contiguous, with each patch token turned to its place."""
        sine, cosine = rope.chunk(2, dim=-1)
        sine = functional.pad(sine, (0, 0, self.n_prefix_tokens, 0))
        cosine = functional.pad(cosine, (0, 0, self.n_prefix_tokens, 0), value=1.0)
        half = sine.shape[-1] // 2
        turned = torch.empty(queries_and_keys.shape, dtype=rope.dtype)
        torch.mul(queries_and_keys, cosine, out=turned)
        turned[..., :half].addcmul_(queries_and_keys[..., half:], sine[..., :half], value=-1)
        turned[..., half:].addcmul_(queries_and_keys[..., :half], sine[..., half:])
        return turned


def keep_stream_in_fp32(network: nn.Module) -> int:
    """Put the branches of all pre-norm blocks of `network` (timm's) into bf16, and have their norms hand over bf16.

    Returns:
        How many blocks were changed; 0 for any other network, which is left as it is.
    """
    blocks = [module for module in network.modules() if _is_pre_norm(module)]
    for block in blocks:
        for norm, branch in (("norm1", "attn"), ("norm2", "mlp")):
            getattr(block, branch).to(torch.bfloat16)
            setattr(block, norm, NormToBf16(getattr(block, norm)))
    return len(blocks)


def _is_pre_norm(block: Any) -> bool:
    """Return whether this is timm's ``x + attn(norm1(x))``, ``x + mlp(norm2(x))``, with LayerNorms."""
    return (
        type(block).__name__ in ("Block", "EvaBlock")
        and all(isinstance(getattr(block, name, None), nn.LayerNorm) for name in ("norm1", "norm2"))
        and all(isinstance(getattr(block, name, None), nn.Module) for name in ("attn", "mlp"))
    )


class NormToBf16(nn.Module):
    """A norm of the stream in fp32 whose result goes into a branch in bf16."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x` in bf16, of its shape."""
        normalised: Tensor = self.norm(x)
        return normalised.to(torch.bfloat16)
