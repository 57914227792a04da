"""Mean pooling: the slide is the average of its tiles' hidden vectors."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi_dino.mil.layers.seeded_dropout import SeededDropout
from wsi_dino.mil.mil_model import Hyperparameters, MilModel, ModelOutput, ModelRecord, masked_mean, towards_positive
from wsi_dino.mil.search_range import Between, OneOf


class MeanPoolHyperparameters(Hyperparameters):
    """Hyper-parameters of mean pooling.

    Attributes:
        hidden_dim: length of ``h``.
        dropout: share of ``h`` set to zero in training.
    """

    hidden_dim: Annotated[int, OneOf((128, 256, 512))] = Field(512, ge=1)
    dropout: Annotated[float, Between(0, 0.5)] = Field(0.25, ge=0, lt=1)


class MeanPool(MilModel):
    """``outputs = H mean_i(h_i) + c`` with ``h_i = relu(P x_i + b)``.

    What a tile contributes is ``(H h_i + c) / n``: its own outputs, were it a slide alone, over the number of tiles.

    Examples:
        >>> model = MeanPool(4, 2, MeanPoolHyperparameters())
        >>> tuple(model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool)).outputs.shape)
        (3, 2)
    """

    def __init__(self, embed_dim: int, n_outputs: int, options: MeanPoolHyperparameters) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, options.hidden_dim)
        self.dropout = SeededDropout(options.dropout)
        self.head = nn.Linear(options.hidden_dim, n_outputs)

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`."""
        hidden = self.dropout(torch.relu(self.projection(bags)))
        outputs = self.head(masked_mean(hidden, mask))
        of_tiles = self.head(hidden)
        contributions = of_tiles * mask[..., None] / mask.sum(1)[:, None, None]
        return ModelOutput(outputs, towards_positive(of_tiles, outputs, mask), contributions)


RECORD = ModelRecord(
    name="mean-pool",
    title="mean pooling of a learnt hidden layer",
    paper="the baseline MI-Net (mean): Wang et al. 2018, https://doi.org/10.1016/j.patcog.2017.08.026",
    hyperparameters=MeanPoolHyperparameters,
    build=MeanPool,
    tile_score="the output that the tile would have alone, positive class less negative; every tile weighs the same",
)
