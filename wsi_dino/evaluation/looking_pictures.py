"""Pictures of what a model looked at: a mosaic of tiles, and the curves of deletion and insertion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_dino.evaluation.pictures import INK, RULE, SERIES, Picture, plain_text

_TILE_IN, _CAPTION_IN, _TITLE_IN = 1.0, 0.34, 0.3
_LETTERS = 17


@dataclass(frozen=True)
class MosaicTile:
    """A tile with what stands below it.

    Attributes:
        caption: one or two short lines.
        pixels: uint8 ``(height, width, 3)``, or None when the slide could not be read.
    """

    caption: str
    pixels: np.ndarray | None


@dataclass(frozen=True)
class MosaicRow:
    """Tiles side by side under a title."""

    title: str
    tiles: Sequence[MosaicTile]


def mosaic_picture(rows: Sequence[MosaicRow], name: str) -> Picture:
    """Return rows of tiles with their captions."""
    n_columns = max(len(row.tiles) for row in rows)
    size_in = (n_columns * (_TILE_IN + 0.08), len(rows) * (_TILE_IN + _CAPTION_IN + _TITLE_IN))

    def draw(figure: Any) -> None:
        figure.set_layout_engine("none")
        for index, row in enumerate(rows):
            top = 1 - index / len(rows)
            figure.text(0.01, top - 0.2 * _TITLE_IN / size_in[1], plain_text(row.title), va="top", fontsize=9)
            for column, tile in enumerate(row.tiles):
                left = (column * (_TILE_IN + 0.08) + 0.04) / size_in[0]
                bottom = top - (_TITLE_IN + _TILE_IN) / size_in[1]
                axis = figure.add_axes((left, bottom, _TILE_IN / size_in[0], _TILE_IN / size_in[1]))
                _draw_tile(axis, tile)

    return Picture(name, "Tiles that look most and least like each class", size_in, draw)


def _draw_tile(axis: Any, tile: MosaicTile) -> None:
    if tile.pixels is None:
        axis.set_facecolor(RULE)
        axis.text(0.5, 0.5, "no picture", ha="center", va="center", transform=axis.transAxes, fontsize=7)
    else:
        axis.imshow(tile.pixels)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    lines = [line if len(line) <= _LETTERS else line[: _LETTERS - 1] + "…" for line in tile.caption.split("\n")]
    axis.set_xlabel("\n".join(lines), fontsize=6.5, labelpad=2)


def faithfulness_picture(faithfulness: Mapping[str, Any], name: str) -> Picture:
    """Return the mean curves of deletion and insertion, by attention and at random."""

    def draw(figure: Any) -> None:
        share, curves = faithfulness["curves"]["share"], faithfulness["curves"]
        panels = figure.subplots(1, 2, sharey=True)
        for axis, way in zip(panels, ("deletion", "insertion"), strict=True):
            areas = faithfulness[way]
            for key, source, colour, style in (
                (way, "attention", SERIES[0], "-"), (f"random_{way}", "random", SERIES[1], "--")
            ):  # fmt: skip
                text = f"{'most attended first' if source == 'attention' else 'random order'}: "
                area = areas[source]["value"]
                axis.plot(share, curves[key], style, color=colour, linewidth=1.8, label=f"{text}{area:.3f}")
            moved = "removed" if way == "deletion" else "inserted"
            axis.set(xlabel=f"share of tiles {moved}", xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
            axis.set_title(way, fontsize=9, color=INK)
            axis.legend(loc="lower left" if way == "deletion" else "lower right", title="area under it", fontsize=7.5,
                        title_fontsize=7.5)  # fmt: skip
        panels[0].set_ylabel("probability of the class said")

    return Picture(name, "Score while tiles are removed or inserted", (7.6, 3.3), draw)
