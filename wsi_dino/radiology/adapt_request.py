"""How `radiology --adapt` is asked for, and what it says and shows while it works."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsi_dino.encoders.adapt import AdaptSpec
    from wsi_dino.encoders.base_encoder import BaseEncoder

Bars = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


@dataclass(frozen=True)
class AdaptRequest:
    """How an encoder is adapted to each fold.

    Attributes:
        base: the encoder, at the size that is judged.
        spec: the recipe.
        n_slices: of a volume and epoch; radiographs have none.
        say: told what a reader should know.
        bars: opens a progress bar by title and unit.
    """

    base: BaseEncoder
    spec: AdaptSpec
    n_slices: int
    say: Callable[[str], None]
    bars: Bars
