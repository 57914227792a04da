"""What every MIL model is: bags in, outputs and a raw score of each tile out; and the record that tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

ExtraLoss = Callable[[Tensor, Tensor], Tensor]
_HAS_TWO = 2


@dataclass(frozen=True)
class ModelOutput:
    """What a model says of padded bags.

    Attributes:
        outputs: ``(n_bags, n_outputs)``, before softmax or sigmoid.
        attention: raw score of each tile ``(n_bags, n)``, -inf where padded; its softmax over the bag (where it is
            no attention, that of its standard score) is stored and drawn. `ModelRecord.tile_score` says its meaning.
        contributions: ``(n_bags, n, n_outputs)``, 0 where padded, whose sum over the tiles is `outputs`; None where
            the model has no such parts.
        streams: shares and outputs that the loss is taken of in training; empty = of `outputs` alone.
        extra_losses: further losses, called with the bags' truth ``(n_bags, k)`` and weights ``(n_bags,)``.
    """

    outputs: Tensor
    attention: Tensor
    contributions: Tensor | None = None
    streams: tuple[tuple[float, Tensor], ...] = ()
    extra_losses: tuple[ExtraLoss, ...] = ()

    @property
    def learnt_streams(self) -> tuple[tuple[float, Tensor], ...]:
        """`streams`, or the outputs with share 1."""
        return self.streams or ((1.0, self.outputs),)


class MilModel(nn.Module):
    """Base of the models: features are divided by one number, and padding cannot be seen.

    Subclasses define `look`. Dropout is taken from `layers.seeded_dropout`, so that it depends on the seed of the
    bag and not on which thread works on it.
    """

    feature_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("feature_scale", torch.ones(()))

    def forward(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """Look at padded bags.

        Args:
            bags: ``(n_bags, n, embed_dim)``; what stands in padded rows is ignored.
            mask: bool ``(n_bags, n)``, True = real; each bag has at least one real instance.
        """
        bags = bags.masked_fill(~mask[..., None], 0)  # a NaN in the padding must not spread
        return self.look(bags / self.feature_scale, mask)

    def look(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        """As `forward`, of scaled features that are 0 where padded."""
        raise NotImplementedError


class Hyperparameters(BaseModel):
    """Base of what a model may be given; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class ModelRecord:
    """What is known of a model without building it.

    Attributes:
        name: after ``--model``; the name of its file with ``-`` for ``_``.
        title: one line for people.
        paper: where it comes from.
        hyperparameters: its spec, with defaults; fields annotated with a `SearchRange` may be searched.
        build: makes the model of ``(embed_dim, n_outputs, hyperparameters)`` with weights from torch's generator.
        tile_score: what the stored score of a tile means.
        ranks_tiles: whether that score claims to rank the tiles that tell the class first.
        order_matters: whether the order of the tiles changes the outputs.
        needs_classes: whether its loss is defined for one class a slide only.
        is_convex: whether it is fitted to the optimum rather than by epochs of AdamW.
    """

    name: str
    title: str
    paper: str
    hyperparameters: type[Hyperparameters]
    build: Callable[[int, int, Any], MilModel]
    tile_score: str
    ranks_tiles: bool = True
    order_matters: bool = False
    needs_classes: bool = False
    is_convex: bool = False

    @property
    def has_attention(self) -> bool:
        """Whether the score of a tile is the weight that the model itself gives it."""
        return self.tile_score.startswith("attention")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the real instances: ``(n_bags, n, d)`` to ``(n_bags, d)``."""
    return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def towards_positive(of_tiles: Tensor, outputs: Tensor, mask: Tensor) -> Tensor:
    """Return one raw score a tile from its own outputs, -inf where padded.

    One output: that one. Two: the last less the first, so that high means the positive class. More: the output
    that the bag has highest, less the mean of the others.

    Args:
        of_tiles: ``(n_bags, n, n_outputs)``.
        outputs: of the bags ``(n_bags, n_outputs)``.
        mask: bool ``(n_bags, n)``.

    Examples:
        >>> towards_positive(torch.tensor([[[1.0, 4.0]]]), torch.zeros(1, 2), torch.ones(1, 1, dtype=torch.bool))
        tensor([[3.]])
    """
    n_outputs = outputs.shape[1]
    if n_outputs == 1:
        scores = of_tiles[..., 0]
    elif n_outputs == _HAS_TWO:
        scores = of_tiles[..., 1] - of_tiles[..., 0]
    else:
        chosen = outputs.argmax(1)[:, None, None].expand(-1, of_tiles.shape[1], 1)
        said = of_tiles.gather(2, chosen)[..., 0]
        scores = said - (of_tiles.sum(2) - said) / (n_outputs - 1)
    return scores.masked_fill(~mask, float("-inf"))
