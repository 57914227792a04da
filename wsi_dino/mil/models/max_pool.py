"""Max pooling: the slide is what its most suspicious tile is."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi_dino.mil.layers.seeded_dropout import SeededDropout
from wsi_dino.mil.mil_model import Hyperparameters, MilModel, ModelOutput, ModelRecord, towards_positive
from wsi_dino.mil.search_range import Between, OneOf


class MaxPoolHyperparameters(Hyperparameters):
    """Hyper-parameters of max pooling.

    Attributes:
        hidden_dim: length of ``h``.
        dropout: share of ``h`` set to zero in training.
    """

    hidden_dim: Annotated[int, OneOf((128, 256, 512))] = Field(512, ge=1)
    dropout: Annotated[float, Between(0, 0.5)] = Field(0.25, ge=0, lt=1)


class MaxPool(MilModel):
    """``outputs_c = max_i (H h_i + b)_c`` with ``h_i = relu(P x_i + a)``: each output has a tile of its own.

    Examples:
        >>> model = MaxPool(4, 2, MaxPoolHyperparameters())
        >>> tuple(model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool)).outputs.shape)
        (3, 2)
    """

    def __init__(self, embed_dim: int, n_outputs: int, options: MaxPoolHyperparameters) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, options.hidden_dim)
        self.dropout = SeededDropout(options.dropout)
        self.head = nn.Linear(options.hidden_dim, n_outputs)

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`."""
        of_tiles = self.head(self.dropout(torch.relu(self.projection(bags))))
        outputs = of_tiles.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return ModelOutput(outputs, towards_positive(of_tiles, outputs, mask))


RECORD = ModelRecord(
    name="max-pool",
    title="max pooling of tile outputs",
    paper="mi-Net: Wang et al. 2018, https://doi.org/10.1016/j.patcog.2017.08.026",
    hyperparameters=MaxPoolHyperparameters,
    build=MaxPool,
    tile_score="the tile's own output, positive class less negative; the slide takes the highest of each class",
)
