"""What an encoder's patches tell of radiographs and of slices: as colours, and where they resemble a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.patch_maps import (
    enlarged,
    heat_over,
    label_direction,
    principal_colours,
    similarity_maps,
    tile_pictures,
)
from wsi_dino.evaluation.radiology_report import PagePicture

_MAPPED_PX = 176
_LABELS, _SHOWN, _LEARNT = 2, 6, 12
_TOP_SHARE = 0.05  # of the patches of a view, by which the one to show is chosen


@dataclass(frozen=True)
class Looked:
    """What there is to look at.

    Attributes:
        views: row of an item to uint8 ``(n_views, side, side, 3)`` as the encoder gets it (one of a radiograph, some
            slices of a volume), or None when it can no longer be read.
        maps: of views, float32 ``(n, channels, height, width)``.
        label_names: ``(n_labels,)``.
        targets: ``(n, n_labels)``.
        unit: what an item is: images or volumes.
        which: what the view of an item is, for the caption; "" where there is but one.
    """

    views: Callable[[int], np.ndarray | None]
    maps: Callable[[np.ndarray], np.ndarray]
    label_names: Sequence[str]
    targets: np.ndarray
    unit: str
    which: str = ""

    def of(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return the views of those items that can be read."""
        return [views for row in rows if (views := self.views(row)) is not None]


def evenly(n: int, wanted: int) -> list[int]:
    """Return up to `wanted` of `n` rows, spread.

    Examples:
        >>> evenly(10, 3), evenly(2, 3)
        ([0, 3, 6], [0, 1])
    """
    return [i * n // min(n, wanted) for i in range(min(n, wanted))]


def colour_picture(views: np.ndarray, maps: np.ndarray, unit: str) -> PagePicture:
    """Return views ``(n, side, side, 3)``, and below each its patches as colours."""
    tiles = [enlarged(view, _MAPPED_PX, smooth=True) for view in views]
    tiles += [enlarged(picture, _MAPPED_PX, smooth=False) for picture in principal_colours(maps)]
    return PagePicture(
        "Patches as colours",
        tile_pictures(tiles, len(views)),
        f"Below each {unit}, the first three principal components of its patch features as red, green and blue, the "
        "same for all: patches of one colour are alike to the encoder.",
    )


def similarity_pictures(looked: Looked, metrics: Mapping[str, Any], fold: FoldScores) -> list[PagePicture]:
    """Return where patches resemble the labels that were found best.

    Similarity is learnt on items that `fold` does not test, and shown on items that it tests.
    """
    minimum = metrics["protocol"]["evaluation"]["min_positives"]
    found = [
        (label["auc"]["value"], name)
        for name, label in metrics["labels"].items()
        if label["auc"]["value"] is not None and label["n_positive"] >= minimum
    ]
    best = [name for _, name in sorted(found, reverse=True)[:_LABELS]]
    pictures = (_similarity(looked, fold, name) for name in best)
    return [picture for picture in pictures if picture is not None]


def _similarity(looked: Looked, fold: FoldScores, name: str) -> PagePicture | None:
    label = list(looked.label_names).index(name)
    outside = np.setdiff1d(np.arange(len(looked.targets)), fold.rows)
    sides = [outside[looked.targets[outside, label] == value] for value in (1, 0)]
    learnt = [looked.of([int(side[i]) for i in evenly(len(side), _LEARNT)]) for side in sides]
    order = np.argsort(-fold.scores[:, label], kind="stable")
    shown = looked.of([int(fold.rows[i]) for i in order if fold.targets[i, label] == 1][:_SHOWN])
    if not shown or not all(learnt):
        return None
    positive, negative = (looked.maps(np.concatenate(views)) for views in learnt)
    centre = np.concatenate([positive, negative]).mean((0, 2, 3), dtype=np.float64)
    direction = label_direction(positive, negative)
    picked = [_most_alike(views, similarity_maps(looked.maps(views), direction, centre)) for views in shown]
    tiles = [enlarged(view, _MAPPED_PX, smooth=True) for view, _ in picked]
    limit = float(np.percentile(np.abs([heat for _, heat in picked]), 98))
    heated = [heat_over(tile, heat, limit) for tile, (_, heat) in zip(tiles, picked, strict=True)]
    n_with, n_without = (len(views) for views in learnt)
    return PagePicture(
        f"Where patches resemble {name}",
        tile_pictures([*tiles, *heated], len(tiles)),
        f"The {len(tiles)} tested {looked.unit} with {name} of the highest scores{looked.which}. Red: the patch points "
        f"from the mean patch of {n_without} {looked.unit} without the label to that of {n_with} with it "
        f"({looked.unit} that this fold does not test). It is no outline of a finding: it may show what goes with it, "
        "as tubes, arms or the edge of the picture.",
    )


def _most_alike(views: np.ndarray, heats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the view whose strongest patches are most alike, and its heat."""
    flat = np.sort(heats.reshape(len(heats), -1), axis=1)
    n_top = max(1, round(_TOP_SHARE * flat.shape[1]))
    best = int(flat[:, -n_top:].mean(1).argmax())
    return views[best], heats[best]
