"""Gated attention over instances, as several models use it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsi_dino.mil.layers.seeded_dropout import SeededDropout


class GatedAttention(nn.Module):
    """Raw attention ``w' (tanh(V h + a) * sigmoid(U h + b)) + c`` (Ilse et al. 2018, equation 9, with biases).

    Args:
        width: length of ``h``.
        attention_dim: length of ``V h``.
        dropout: on either branch.
        gated: with the sigmoid branch.
    """

    def __init__(self, width: int, attention_dim: int, dropout: float = 0.0, gated: bool = True) -> None:
        super().__init__()
        self.tanh_branch = nn.Linear(width, attention_dim)
        self.sigmoid_branch = nn.Linear(width, attention_dim) if gated else None
        self.to_score = nn.Linear(attention_dim, 1)
        self.dropout = SeededDropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return raw attention ``(n_bags, n)`` of ``(n_bags, n, width)``, -inf where `mask` is False."""
        gate = self.dropout(torch.tanh(self.tanh_branch(hidden)))
        if self.sigmoid_branch is not None:
            gate = gate * self.dropout(torch.sigmoid(self.sigmoid_branch(hidden)))
        return self.to_score(gate)[..., 0].masked_fill(~mask, float("-inf"))
