"""TransMIL: a transformer over all tiles of a slide, with their order as position."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsi_dino.mil.layers.nystrom_attention import NystromAttention
from wsi_dino.mil.layers.seeded_dropout import SeededDropout
from wsi_dino.mil.mil_model import Hyperparameters, MilModel, ModelOutput, ModelRecord
from wsi_dino.mil.search_range import Between, OneOf

_SMALLEST = 1e-12


class TransmilHyperparameters(Hyperparameters):
    """Hyper-parameters of TransMIL.

    Attributes:
        hidden_dim: length of a token.
        n_heads: of attention; divides `hidden_dim`.
        n_landmarks: of Nystrom's approximation; a slide of fewer tokens is attended to exactly.
        n_iterations: of its pseudo-inverse.
        kernel: of the convolution over neighbours beside attention; odd, 0 = none.
        dropout: on what attention gives.
    """

    hidden_dim: Annotated[int, OneOf((128, 256, 512))] = Field(512, ge=1)
    n_heads: Annotated[int, OneOf((4, 8))] = Field(8, ge=1)
    n_landmarks: Annotated[int, OneOf((64, 128, 256))] = Field(256, ge=1)
    n_iterations: int = Field(6, ge=1)
    kernel: int = Field(33, ge=0)
    dropout: Annotated[float, Between(0, 0.5)] = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> TransmilHyperparameters:
        if self.hidden_dim % self.n_heads:
            raise ValueError(f"n_heads = {self.n_heads} does not divide hidden_dim = {self.hidden_dim}")
        if self.kernel and self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel} is even; it must be odd, or 0 for none")
        return self


class PyramidPosition(nn.Module):
    """PPEG: depthwise convolutions of three sizes over the tokens laid out as a square, added to them.

    Args:
        width: length of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Take and return ``(1 + side * side, width)``; the first token stays as it is."""
        side = math.isqrt(len(tokens) - 1)
        square = tokens[1:].t().reshape(1, tokens.shape[1], side, side)
        placed = square + sum(convolution(square) for convolution in self.convolutions)
        return torch.cat([tokens[:1], placed[0].flatten(1).t()])


class Transmil(MilModel):
    """TransMIL (Shao et al. 2021, algorithm 2).

    A linear map with ReLU makes tokens; the first ones are repeated until there are a square number; a class token
    goes before them. Then attention, `PyramidPosition`, attention, each before a residual and after a layer norm;
    the outputs are a linear map of the class token. The order of the tiles is their position, so it matters.

    Examples:
        >>> model = Transmil(4, 2, TransmilHyperparameters(hidden_dim=16))
        >>> tuple(model(torch.zeros(3, 5, 4), torch.ones(3, 5, dtype=torch.bool)).outputs.shape)
        (3, 2)
    """

    def __init__(self, embed_dim: int, n_outputs: int, options: TransmilHyperparameters) -> None:
        super().__init__()
        width = options.hidden_dim

        def attention() -> NystromAttention:
            how = (options.n_heads, options.n_landmarks, options.n_iterations, options.kernel, options.dropout)
            return NystromAttention(width, *how)

        self.projection = nn.Linear(embed_dim, width)
        self.dropout = SeededDropout(options.dropout)
        self.class_token = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.first_norm, self.second_norm, self.last_norm = (nn.LayerNorm(width) for _ in range(3))
        self.first_attention, self.second_attention = attention(), attention()
        self.position = PyramidPosition(width)
        self.head = nn.Linear(width, n_outputs)

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """See `MilModel.look`; slides are looked at one by one, since each has a square of its own size."""
        outputs, attention = [], bags.new_full(mask.shape, float("-inf"))
        for index, real in enumerate(mask):
            of_bag, raw = self._look(bags[index][real])
            outputs.append(of_bag)
            attention[index, real] = raw.to(attention.dtype)
        return ModelOutput(torch.stack(outputs), attention)

    def _look(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        n = len(bag)
        at = torch.arange((math.isqrt(n - 1) + 1) ** 2, device=bag.device) % n
        hidden = self.dropout(torch.relu(self.projection(bag)))
        tokens = torch.cat([self.class_token, hidden[at]])
        tokens = tokens + self.first_attention(self.first_norm(tokens))[0]
        tokens = self.position(tokens)
        attended, of_class_token = self.second_attention(self.second_norm(tokens))
        outputs = self.head(self.last_norm((tokens + attended)[0]))
        # a tile that was repeated has the attention of all its tokens
        share = bag.new_zeros(n).index_add(0, at, of_class_token[1:].detach().to(bag.dtype))
        return outputs, share.clamp_min(_SMALLEST).log()


RECORD = ModelRecord(
    name="transmil",
    title="TransMIL: a transformer with Nystrom attention",
    paper="Shao et al. 2021, https://arxiv.org/abs/2106.00908",
    hyperparameters=TransmilHyperparameters,
    build=Transmil,
    tile_score="attention of the class token in the last layer, mean over heads",
    ranks_tiles=False,
    order_matters=True,
)
