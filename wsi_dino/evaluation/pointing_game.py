"""Pointing game: does the place of the highest value lie where it should? (Zhang et al., IJCV 2018)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError

_Z = 1.959963984540054


@dataclass(frozen=True)
class Pointing:
    """One slide with annotated regions.

    Attributes:
        slide_id: text id.
        hit: the centre of the tile with the highest value lies in a region (of equal ones, their share).
        chance: share of all tiles whose centre does: what pointing anywhere would give.
        overlap: the share of that tile that is annotated.
    """

    slide_id: str
    hit: float
    chance: float
    overlap: float


def point(slide_id: str, values: np.ndarray, centre_inside: np.ndarray, annotated_share: np.ndarray) -> Pointing:
    """Look where the highest value of a slide points.

    Args:
        slide_id: text id.
        values: float ``(n,)``, n > 0.
        centre_inside: bool ``(n,)``.
        annotated_share: float ``(n,)``.

    Examples:
        >>> inside = np.array([True, False, False, False])
        >>> point("S", np.array([0.9, 0.1, 0.2, 0.0]), inside, inside.astype(float))
        Pointing(slide_id='S', hit=1.0, chance=0.25, overlap=1.0)
    """
    best = values == values.max()
    inside = centre_inside.astype(float)
    return Pointing(slide_id, float(inside[best].mean()), float(inside.mean()), float(annotated_share[best].mean()))


def summarise_pointing(slides: Sequence[Pointing]) -> dict[str, Any]:
    """Return the share of slides hit with Wilson's 95 % interval, what chance gives, and each slide.

    Raises:
        ConfigError: there is no slide with annotated regions.
    """
    if not slides:
        raise ConfigError("Playing the pointing game: no slide has both an annotated region and tiles.")
    accuracy = float(np.mean([slide.hit for slide in slides]))
    low, high = wilson_interval(accuracy, len(slides))
    return {
        "accuracy": accuracy, "low": low, "high": high, "interval": "Wilson, 95 %",
        "chance": float(np.mean([slide.chance for slide in slides])), "n_slides": len(slides),
        "n_hits": float(np.sum([slide.hit for slide in slides])), "slides": [asdict(slide) for slide in slides],
    }  # fmt: skip


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share of `n`, 95 %.

    Examples:
        >>> [round(bound, 3) for bound in wilson_interval(0.5, 10)]
        [0.237, 0.763]
    """
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))
