"""The tiles of held-out slides that look most and least like each class to the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wsi_dino.mil.attention_file import SlideAttention

_OF_A_SLIDE = 2
ENDS = ("top", "bottom")
COLUMNS = (
    "class", "end", "rank", "slide_id", "fold", "target", "x", "y", "width", "height", "probability", "attention_lift",
)  # fmt: skip


@dataclass(frozen=True)
class TopTile:
    """One tile.

    Attributes:
        of_class: whose probability put it here.
        end: ``"top"`` (highest) or ``"bottom"`` (lowest).
        rank: from 1.
        slide_id, target, fold: its slide, what that is, and whose model was asked.
        x, y: top-left corner in level-0 px.
        tile_wh_level0: its footprint, or None when the features do not say.
        probability: that the tile alone is of the class.
        lift: its attention over the even share.
    """

    of_class: str
    end: str
    rank: int
    slide_id: str
    target: str
    fold: int
    x: int
    y: int
    tile_wh_level0: tuple[int, int] | None
    probability: float
    lift: float

    def row(self) -> dict[str, object]:
        """Return it as a row of top_tiles.csv."""
        width, height = self.tile_wh_level0 or ("", "")
        values = (
            self.of_class, self.end, self.rank, self.slide_id, self.fold, self.target, self.x, self.y, width, height,
            self.probability, self.lift,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


@dataclass
class TopTiles:
    """Collects the best and worst tiles slide by slide, so that memory does not grow with their number.

    Only tiles that got at least the even share of attention count (what a model passes over says little of
    what it takes a class to look like), and at most two of a slide for each class and end.

    Args:
        classes: names, in the order of the probabilities.
        n: tiles of each class and end.
    """

    classes: Sequence[str]
    n: int
    _found: dict[tuple[int, str], list[tuple[float, str, int, TopTile]]] = field(default_factory=dict)

    def add(self, attention: SlideAttention, target: str, probabilities: np.ndarray) -> None:
        """Look at one slide; `probabilities` is ``(n_tiles, n_classes)``."""
        attended = np.flatnonzero(attention.lift >= 1 - 1e-6)
        for index in range(len(self.classes)):
            for end, sign in zip(ENDS, (-1, 1), strict=True):
                keys = sign * probabilities[attended, index]
                best = np.argsort(keys, kind="stable")[:_OF_A_SLIDE]
                members = self._found.setdefault((index, end), [])
                for place in best:
                    tile = self._tile(attention, target, probabilities, int(attended[place]), index, end)
                    members.append((float(keys[place]), attention.slide_id, int(attended[place]), tile))
                members.sort(key=lambda item: item[:3])
                del members[self.n :]

    def _tile(
        self, attention: SlideAttention, target: str, probabilities: np.ndarray, place: int, index: int, end: str
    ) -> TopTile:
        x, y = (int(value) for value in attention.coords[place])
        return TopTile(
            self.classes[index], end, 0, attention.slide_id, target, attention.fold, x, y, attention.tile_wh_level0,
            float(probabilities[place, index]), float(attention.lift[place]),
        )  # fmt: skip

    def tiles(self) -> list[TopTile]:
        """Return those of every class and end, the first rank first."""
        return [
            replace(item[3], rank=rank)
            for key in sorted(self._found, key=lambda key: (key[0], ENDS.index(key[1])))
            for rank, item in enumerate(self._found[key], 1)
        ]
