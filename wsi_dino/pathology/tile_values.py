"""One value for each tile of a slide, and how it is shown: as colours from 0 to 1, with what both ends mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from wsi_dino.errors import ConfigError

Kind = Literal["attention", "probability"]
KINDS: tuple[Kind, ...] = ("attention", "probability")
RANKED = "percentile rank within the slide"
_COLOUR_MAP, _MAP_RANGE = "turbo", (0.09, 0.91)  # its ends are dark, and over tissue both look alike


@dataclass(frozen=True)
class TileValues:
    """What is painted over one slide.

    Attributes:
        slide_id: text id.
        kind: ``"attention"`` is shown by its rank within the slide, since raw weights are a handful of
            spikes over a flat floor; ``"probability"`` is shown as it is.
        values: float ``(n,)``, finite; a probability lies in 0..1.
        xy_level0: int64 ``(n, 2)``, top-left x, y in level-0 px.
        tile_wh_level0: width and height of a footprint in level-0 px.
        of_class: of which class it is the probability; empty for attention.

    Raises:
        ConfigError: the arrays do not fit together, or a value is not finite or out of range.
    """

    slide_id: str
    kind: Kind
    values: np.ndarray
    xy_level0: np.ndarray
    tile_wh_level0: tuple[int, int]
    of_class: str = ""

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if self.xy_level0.shape != (len(values), 2) or min(self.tile_wh_level0) < 1:
            raise ConfigError(
                f"Painting {self.slide_id}: {len(values)} values do not fit coordinates of shape "
                f"{self.xy_level0.shape} and tiles of {self.tile_wh_level0} px."
            )
        out_of_range = self.kind == "probability" and ((values < 0) | (values > 1)).any()
        if not np.isfinite(values).all() or out_of_range:
            raise ConfigError(f"Painting {self.slide_id}: a {self.kind} is not a finite number in its range.")

    @property
    def shades(self) -> np.ndarray:
        """float64 ``(n,)`` in 0..1: where on the colour bar each tile stands."""
        return percentile_ranks(self.values) if self.kind == "attention" else self.values.astype(np.float64)

    @property
    def ends(self) -> tuple[str, str]:
        """What the left and the right end of the colour bar mean."""
        if self.kind == "attention":
            return "least", f"most attended ({RANKED})"
        return "0", f"1: probability that the tile alone is {self.of_class}"

    @property
    def centres(self) -> np.ndarray:
        """float64 ``(n, 2)``: centres of the tiles, in level-0 px."""
        return self.xy_level0 + np.asarray(self.tile_wh_level0) / 2


def percentile_ranks(values: np.ndarray) -> np.ndarray:
    """Return for each value the share of the other values that lie below it; ties share their mean rank.

    Args:
        values: float ``(n,)``, finite.

    Returns:
        float64 ``(n,)`` in 0..1; a single value, or equal ones, get 0.5.

    Examples:
        >>> percentile_ranks(np.array([0.1, 0.7, 0.1, 0.9])).round(3).tolist()
        [0.167, 0.667, 0.167, 1.0]
    """
    n = len(values)
    if n < 2:
        return np.full(n, 0.5)
    order = np.sort(values)
    below = np.searchsorted(order, values, "left")
    up_to = np.searchsorted(order, values, "right")
    return (below + up_to - 1) / 2 / (n - 1)


@lru_cache(maxsize=1)
def colours() -> np.ndarray:
    """Return the colour bar, uint8 ``(256, 3)``: blue, green, yellow, red."""
    from matplotlib import colormaps

    return np.rint(colormaps[_COLOUR_MAP](np.linspace(*_MAP_RANGE, 256))[:, :3] * 255).astype(np.uint8)


def colours_of(shades: np.ndarray) -> np.ndarray:
    """Return uint8 ``(..., 3)`` for shades in 0..1."""
    return np.asarray(colours()[np.rint(shades * 255).astype(int)])
