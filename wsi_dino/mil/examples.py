"""Which held-out slides are worth a look, and what the model looked at on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi_dino.errors import WsiDinoError
from wsi_dino.evaluation.report import Example, ExampleTile
from wsi_dino.mil.attention_file import SlideAttention

_N_TILES = 8
_N_RIGHT, _N_WRONG = 2, 2


class SlidePictures(Protocol):
    """Pictures of a slide; made elsewhere, since this room knows no slides.

    Every method raises a WsiDinoError when the slide is not there or cannot be read.
    """

    def tiles(self, slide_id: str, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int]) -> list[np.ndarray]:
        """Return small uint8 ``(height, width, 3)`` pictures of tiles."""

    def overview(self, attention: SlideAttention) -> np.ndarray:
        """Return the slide with its attention laid over it, uint8 ``(height, width, 3)``."""

    def write_heatmap(self, path: Path, attention: SlideAttention, title: str) -> None:
        """Write the slide with its attention and a legend as PNG."""


def confidence(row: Mapping[str, Any], threshold: float | None) -> float:
    """Return how far a score lies from the cut, as a share of how far it could: 0 at the cut, 1 at the end.

    Examples:
        >>> round(confidence({"score": 0.9}, 0.5), 3), round(confidence({"score": 0.1}, 0.2), 3)
        (0.8, 0.5)
    """
    score = float(row["score"])
    if threshold is None:
        return score
    room = 1 - threshold if score >= threshold else threshold
    return abs(score - threshold) / room if room > 0 else 0.0


def choose_examples(
    test_rows: Sequence[Mapping[str, Any]], thresholds: Mapping[int, float | None], classes: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Choose the most confident right and wrong slides: right ones of different classes first."""
    ranked = sorted(test_rows, key=lambda row: (-confidence(row, thresholds[row["fold"]]), row["slide_id"]))
    right = [row for row in ranked if classes[int(row["label"])] == row["predicted"]]
    wrong = [row for row in ranked if classes[int(row["label"])] != row["predicted"]]
    first_of_class = [next((row for row in right if row["label"] == label), None) for label in range(len(classes))]
    shown = [row for row in reversed(first_of_class) if row is not None][:_N_RIGHT]
    shown += [row for row in right if row not in shown][: _N_RIGHT - len(shown)]
    return [*shown, *wrong[:_N_WRONG]]


def choose_extremes(test_rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose the slides with the highest and the lowest scores, where there is no right and wrong."""
    ranked = sorted(test_rows, key=lambda row: (-row["score"], row["slide_id"]))
    return ranked[:_N_RIGHT] + ranked[_N_RIGHT:][-_N_WRONG:]


def make_example(
    row: Mapping[str, Any], attention: SlideAttention, classes: Sequence[str], pictures: SlidePictures | None
) -> Example:
    """Show one slide: its most attended tiles and, when the slide file is there, how they look."""
    top = np.argsort(-attention.attention_weights, kind="stable")[:_N_TILES]
    xy, lift = attention.coords[top], attention.lift[top]
    pixels, overview, note = _look(attention, xy, pictures)
    tiles = [
        ExampleTile(int(x), int(y), float(share), pixels[place] if pixels else None)
        for place, ((x, y), share) in enumerate(zip(xy, lift, strict=True))
    ]
    truth = classes[int(row["label"])] if classes else str(row["target"])
    return Example(
        str(row["slide_id"]), truth, float(row["score"]), int(row["fold"]),
        truth == row["predicted"] if classes else None,
        tiles, overview, note,
    )  # fmt: skip


def _look(
    attention: SlideAttention, xy: np.ndarray, pictures: SlidePictures | None
) -> tuple[list[np.ndarray] | None, np.ndarray | None, str]:
    if pictures is None or attention.tile_wh_level0 is None:
        return None, None, "No picture: the features do not say where their tiles lie on which slide."
    try:
        tiles = pictures.tiles(attention.slide_id, xy, attention.tile_wh_level0)
        return tiles, pictures.overview(attention), ""
    except WsiDinoError as error:
        return None, None, f"No picture: {error}"


def render_heatmaps(
    rows: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], SlideAttention], folder: Path,
    pictures: SlidePictures, report: Callable[..., None],
) -> dict[str, str]:  # fmt: skip
    """Write ``folder/SLIDE.png`` for each row.

    Returns:
        For each slide without a picture, why.
    """
    missing: dict[str, str] = {}
    for row in rows:
        slide_id = str(row["slide_id"])
        title = f"{slide_id}: {row['target']}, score {float(row['score']):.3f} (held out in fold {row['fold']})"
        try:
            attention = read(row)
            shown = "" if attention.tile_score.startswith("attention") else f"; colour: {attention.tile_score}"
            pictures.write_heatmap(folder / f"{slide_id}.png", attention, title + shown)
        except WsiDinoError as error:
            missing[slide_id] = str(error)
        report(1, text=slide_id)
    return missing
