"""A ViT whose tokens are pooled by one learned query. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn, zeros

from wsi_dino.encoders.backbone import Backbone, TimmVit, create_timm_network
from wsi_dino.encoders.record import EncoderSpec, Pooling

_N_HEADS = 8


class AttentionalPooler(nn.Module):
    """Multi-head attention of learned queries over a row of tokens (CoCa, Yu et al. 2022).

    Queries and tokens are layer-normalised first; tokens are projected to the width of the queries.
    """

    def __init__(
        self, embed_dim: int, token_dim: int, n_heads: int = _N_HEADS, n_queries: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(zeros(n_queries, embed_dim))
        self.attn = nn.MultiheadAttention(
            embed_dim, n_heads, bias=bias, kdim=token_dim, vdim=token_dim, batch_first=True
        )
        self.ln_q = nn.LayerNorm(embed_dim)
        self.ln_k = nn.LayerNorm(token_dim)
        nn.init.normal_(self.query)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (batch, n_queries, embed_dim) for `tokens` (batch, n_tokens, token_dim)."""
        keys = self.ln_k(tokens)
        queries = self.ln_q(self.query).expand(len(tokens), -1, -1)
        pooled, _ = self.attn(queries, keys, keys, need_weights=False)
        return pooled


class PooledVit(Backbone):
    """A ViT of timm, an attentional pooler with one query, and a layer norm."""

    def __init__(self, model: Any, embed_dim: int, n_prefix_tokens: int, bias: bool = True) -> None:
        super().__init__()
        self.model = model
        self.pooler = AttentionalPooler(embed_dim, model.num_features, bias=bias)
        self.norm = nn.LayerNorm(embed_dim)
        self.n_prefix_tokens = n_prefix_tokens

    @classmethod
    def create(cls, record: EncoderSpec) -> Self:
        """Return the network of `record` without weights."""
        return cls(create_timm_network(record), record.embed_dim, record.n_prefix_tokens)

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Return the normalised answer to the query; CLS takes part as one of the tokens."""
        pooled: Tensor = self.norm(self.pooler(self.model.forward_features(pixels))[:, 0])
        return pooled.float()

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the patch tokens after each of `layers`, as `TimmVit` does."""
        return TimmVit(self.model, self.n_prefix_tokens).maps(pixels, layers)
