"""A ViT whose CLS token is projected into the space it shares with text. Imports torch."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from wsi_dino.encoders.backbone import TimmVit, create_timm_network
from wsi_dino.encoders.record import EncoderSpec


class ProjectedVit(TimmVit):
    """A ViT of timm and a linear projection without bias, as CLIP's image towers end (Radford et al. 2021)."""

    def __init__(self, model: Any, n_prefix_tokens: int, embed_dim: int) -> None:
        super().__init__(model, n_prefix_tokens)
        self.projection = nn.Linear(model.num_features, embed_dim, bias=False)

    @classmethod
    def create(cls, record: EncoderSpec) -> Self:
        """Return the network of `record` without weights."""
        return cls(create_timm_network(record), record.n_prefix_tokens, record.embed_dim)

    def _pooled(self, tokens: Tensor, part: str) -> Tensor:
        if part == "projected":
            projected: Tensor = self.projection(tokens[:, 0])
            return projected.float()
        return super()._pooled(tokens, part)
