"""ABMIL: gated attention over a linear projection, trained by the packed step."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.mil_model import Hyperparameters, ModelRecord
from wsi_dino.mil.search_range import Between, OneOf


class AbmilHyperparameters(Hyperparameters):
    """Hyper-parameters of ABMIL.

    Attributes:
        hidden_dim, attention_dim, gated, relu, dropout: see `ABMIL`.
    """

    hidden_dim: Annotated[int, OneOf((128, 256, 512))] = Field(512, ge=1)
    attention_dim: Annotated[int, OneOf((64, 128, 256))] = Field(256, ge=1)
    gated: Annotated[bool, OneOf((True, False))] = True
    relu: Annotated[bool, OneOf((True, False))] = False
    dropout: Annotated[float, Between(0, 0.5)] = Field(0.25, ge=0, lt=1)


def _build(embed_dim: int, n_outputs: int, options: AbmilHyperparameters) -> ABMIL:
    return ABMIL(
        embed_dim, n_outputs, options.hidden_dim, options.attention_dim, options.dropout, options.gated, options.relu
    )


RECORD = ModelRecord(
    name="abmil",
    title="attention-based MIL (ABMIL)",
    paper="Ilse et al. 2018, https://arxiv.org/abs/1802.04712",
    hyperparameters=AbmilHyperparameters,
    build=_build,
    tile_score="attention",
)
