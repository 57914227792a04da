"""Additive ABMIL: what each tile adds to the slide's outputs is known exactly."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi_dino.mil.layers.gated_attention import GatedAttention
from wsi_dino.mil.layers.seeded_dropout import SeededDropout
from wsi_dino.mil.mil_model import Hyperparameters, MilModel, ModelOutput, ModelRecord
from wsi_dino.mil.search_range import Between, OneOf


class AdditiveHyperparameters(Hyperparameters):
    """Hyper-parameters of additive ABMIL.

    Attributes:
        hidden_dim: length of ``h``.
        attention_dim: length inside the attention.
        classifier_dim: length inside the classifier of tiles.
        dropout: share of ``h`` set to zero in training.
    """

    hidden_dim: Annotated[int, OneOf((128, 256, 512))] = Field(512, ge=1)
    attention_dim: Annotated[int, OneOf((64, 128, 256))] = Field(256, ge=1)
    classifier_dim: Annotated[int, OneOf((64, 128, 256))] = Field(256, ge=1)
    dropout: Annotated[float, Between(0, 0.5)] = Field(0.25, ge=0, lt=1)


class AdditiveAbmil(MilModel):
    """Additive MIL (Javed et al. 2022, equation 5) over gated attention ``a``.

    ``outputs = sum_i psi(a_i h_i) + a_i b`` with ``h_i = relu(P x_i + c)`` and ``psi`` two linear maps with a ReLU
    between, without biases; ``b`` is shared out by attention. So a slide's number of tiles alone says nothing, and
    the contributions add up to the outputs.

    Examples:
        >>> model = AdditiveAbmil(4, 2, AdditiveHyperparameters())
        >>> seen = model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool))
        >>> bool(torch.allclose(seen.contributions.sum(1), seen.outputs))
        True
    """

    def __init__(self, embed_dim: int, n_outputs: int, options: AdditiveHyperparameters) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, options.hidden_dim)
        self.dropout = SeededDropout(options.dropout)
        self.attention = GatedAttention(options.hidden_dim, options.attention_dim)
        self.classifier = nn.Sequential(
            nn.Linear(options.hidden_dim, options.classifier_dim, bias=False),
            nn.ReLU(),
            nn.Linear(options.classifier_dim, n_outputs, bias=False),
        )
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`."""
        hidden = self.dropout(torch.relu(self.projection(bags)))
        raw = self.attention(hidden, mask)
        weights = torch.softmax(raw, 1)[..., None]
        contributions = self.classifier(weights * hidden) + weights * self.bias
        return ModelOutput(contributions.sum(1), raw, contributions)


RECORD = ModelRecord(
    name="additive-abmil",
    title="additive ABMIL: the tiles' contributions add up to the slide's outputs",
    paper="Javed et al. 2022, https://arxiv.org/abs/2206.01794",
    hyperparameters=AdditiveHyperparameters,
    build=AdditiveAbmil,
    tile_score="attention; the file holds what each tile contributes to each output beside it",
)
