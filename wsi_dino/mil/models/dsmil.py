"""DSMIL: the most telling tile, and all others weighed by their likeness to it."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from wsi_dino.mil.layers.seeded_dropout import SeededDropout
from wsi_dino.mil.mil_model import Hyperparameters, MilModel, ModelOutput, ModelRecord
from wsi_dino.mil.search_range import Between, OneOf


class DsmilHyperparameters(Hyperparameters):
    """Hyper-parameters of DSMIL.

    Attributes:
        query_dim: length of the queries.
        nonlinear: two layers with ReLU and tanh make the queries, instead of one linear map.
        learn_values: a linear map with ReLU makes the values; else they are the features.
        dropout: on the features before the values.
    """

    query_dim: Annotated[int, OneOf((64, 128, 256))] = Field(128, ge=1)
    nonlinear: Annotated[bool, OneOf((True, False))] = True
    learn_values: Annotated[bool, OneOf((True, False))] = False
    dropout: Annotated[float, Between(0, 0.5)] = Field(0.0, ge=0, lt=1)


class Dsmil(MilModel):
    """Dual-stream MIL (Li et al. 2021, equations 3 to 8), one critical tile for each output ``c``.

    ::

        s_i   = W_0 x_i + b_0                       first stream: every tile by itself
        m_c   = argmax_i s_ic                       the critical tile
        a_ic  = softmax_i(<q_i, q_{m_c}> / sqrt(d)) likeness to it
        B_c   = sum_i a_ic v_i                      second stream
        outputs = (max_i s_i + W [B_1 ... B_C] + b) / 2

    Each stream has half of the loss. The scaling by ``sqrt(d)`` and the joint map of all ``B_c`` are those of the
    authors' published program; the paper's formula has neither.

    Examples:
        >>> model = Dsmil(4, 2, DsmilHyperparameters())
        >>> tuple(model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool)).outputs.shape)
        (3, 2)
    """

    def __init__(self, embed_dim: int, n_outputs: int, options: DsmilHyperparameters) -> None:
        super().__init__()
        self.tile_head = nn.Linear(embed_dim, n_outputs)
        first = nn.Linear(embed_dim, options.query_dim)
        second = nn.Linear(options.query_dim, options.query_dim)
        self.query = nn.Sequential(first, nn.ReLU(), second, nn.Tanh()) if options.nonlinear else first
        self.value = (
            nn.Sequential(SeededDropout(options.dropout), nn.Linear(embed_dim, embed_dim), nn.ReLU())
            if options.learn_values
            else SeededDropout(options.dropout)
        )
        self.head = nn.Linear(n_outputs * embed_dim, n_outputs)

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`."""
        of_tiles = self.tile_head(bags).masked_fill(~mask[..., None], float("-inf"))
        highest, critical = of_tiles.max(1)
        queries = self.query(bags)
        wanted = queries.gather(1, critical[..., None].expand(-1, -1, queries.shape[2]))
        likeness = queries @ wanted.transpose(1, 2) / math.sqrt(queries.shape[2])
        weights = torch.softmax(likeness.masked_fill(~mask[..., None], float("-inf")), 1)
        of_slide = self.head((weights.transpose(1, 2) @ self.value(bags)).flatten(1))
        outputs = (highest + of_slide) / 2
        return ModelOutput(
            outputs, _shown(likeness, outputs, mask), None, ((0.5, highest), (0.5, of_slide)) if self.training else ()
        )


def _shown(likeness: Tensor, outputs: Tensor, mask: Tensor) -> Tensor:
    """Return the likeness to the critical tile of the positive class, or of the output that is highest."""
    at = torch.full_like(outputs[:, 0], 1).long() if outputs.shape[1] == 2 else outputs.argmax(1)
    chosen = likeness.gather(2, at[:, None, None].expand(-1, likeness.shape[1], 1))[..., 0]
    return chosen.masked_fill(~mask, float("-inf"))


RECORD = ModelRecord(
    name="dsmil",
    title="DSMIL: the critical tile, and attention by likeness to it",
    paper="Li et al. 2021, https://arxiv.org/abs/2011.08939",
    hyperparameters=DsmilHyperparameters,
    build=Dsmil,
    tile_score="attention: likeness to the critical tile of the positive class (of more than two, of the class said)",
)
