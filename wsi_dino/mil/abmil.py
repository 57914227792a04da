"""Attention-based multiple-instance learning: the readable definition of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsi_dino.mil.mil_model import MilModel, ModelOutput


class ABMIL(MilModel):
    """Attention-based MIL with one attention branch for all classes.

    For a bag of instances ``x_i``::

        h_i     = P x_i + b                                     a learnable linear projection
        raw_i   = w' (tanh(V h_i) * sigmoid(U h_i))             gated attention
        alpha   = softmax(raw) over the instances of the bag
        z       = sum_i alpha_i h_i                             the slide's representation
        logits  = H z + c

    The features are divided by one number, the buffer `feature_scale` (1 unless training sets it), so that one
    recipe fits encoders whose outputs differ in size; the map stays linear. Without
    `gated` the sigmoid branch is absent (Ilse et al. 2018, equation 8).

    Args:
        embed_dim: length of a feature vector.
        n_classes: length of the logits.
        hidden_dim: length of ``h``.
        attention_dim: length of ``V h``.
        dropout: share of ``h`` set to zero in training.
        gated: with the sigmoid branch.
        relu: put a ReLU after the projection, as CLAM does.

    Examples:
        >>> model = ABMIL(embed_dim=4, n_classes=2).eval()
        >>> seen = model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool))
        >>> tuple(seen.outputs.shape), tuple(seen.attention.shape)
        ((3, 2), (3, 5))
    """

    def __init__(
        self,
        embed_dim: int,
        n_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 256,
        dropout: float = 0.25,
        gated: bool = True,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.gated, self.relu = dropout, gated, relu
        self.projection = nn.Linear(embed_dim, hidden_dim)
        self.attention_v = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.attention_u = nn.Linear(hidden_dim, attention_dim, bias=False) if gated else None
        self.attention_w = nn.Linear(attention_dim, 1, bias=False)
        self.head = nn.Linear(hidden_dim, n_classes)

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`."""
        hidden = self.projection(bags)
        hidden = torch.relu(hidden) if self.relu else hidden
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        raw = self._raw_attention(hidden).masked_fill(~mask, float("-inf"))
        slide = attention_weights(raw)[:, None, :] @ hidden
        return ModelOutput(self.head(slide[:, 0]), raw)

    def _raw_attention(self, hidden: Tensor) -> Tensor:
        gate = torch.tanh(self.attention_v(hidden))
        if self.attention_u is not None:
            gate = gate * torch.sigmoid(self.attention_u(hidden))
        return self.attention_w(gate)[..., 0]


def attention_weights(raw: Tensor) -> Tensor:
    """Softmax of raw attention over the last axis: sums to one, 0 where padded.

    Examples:
        >>> attention_weights(torch.tensor([0.0, 0.0, float("-inf")])).tolist()
        [0.5, 0.5, 0.0]
    """
    return torch.softmax(raw, dim=-1)
