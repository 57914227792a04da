"""What the encoder really sees of a data set, and what its patches tell: pictures for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_dino.errors import EncoderError, ImageError
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
from wsi_dino.radiology.chest_image import grey_square_rgb, read_chest_image
from wsi_dino.radiology.chest_run import Combination
from wsi_dino.radiology.datasets.image_set import ImageSet

_SHEET, _SHEET_PX, _SHEET_COLUMNS = 24, 128, 8
_MAPPED, _MAPPED_PX = 6, 176
_LABELS, _SHOWN, _LEARNT = 2, 6, 12


def chest_pictures(
    combination: Combination, metrics: Mapping[str, Any], folds: Sequence[FoldScores]
) -> list[PagePicture]:
    """Return the contact sheet, the patches as colours, and where patches resemble the best-found labels.

    Similarity is learnt on images that the first fold does not test, and shown on images that it tests.
    """
    used = combination.images.only(combination.features.rows.tolist())
    pictures = [_contact_sheet(combination, used)]
    try:
        pictures.append(_colours(combination, used))
        pictures += _similarities(combination, used, metrics, folds[0])
    except EncoderError as error:  # networks of which no feature map is known
        pictures[0] = PagePicture(pictures[0].title, pictures[0].pixels, f"{pictures[0].caption} No maps: {error}")
    return pictures


def _views(combination: Combination, used: ImageSet, rows: Sequence[int]) -> np.ndarray:
    """Return uint8 ``(n, size, size, 3)`` of those rows that can still be read."""
    views = []
    for row in rows:
        try:
            grey = read_chest_image(used.root / str(used.files[row])).grey
        except ImageError:
            continue
        views.append(grey_square_rgb(grey, combination.view))
    return np.stack(views)


def _evenly(n: int, wanted: int) -> list[int]:
    return [i * n // min(n, wanted) for i in range(min(n, wanted))]


def _contact_sheet(combination: Combination, used: ImageSet) -> PagePicture:
    views = _views(combination, used, _evenly(len(used), _SHEET))
    tiles = [enlarged(view, _SHEET_PX, smooth=True) for view in views]
    title = "What the encoder is shown"
    caption = f"{len(tiles)} images spread over the table, as the encoder gets them: {combination.view.text}."
    return PagePicture(title, tile_pictures(tiles, _SHEET_COLUMNS), caption)


def _maps(combination: Combination, views: np.ndarray) -> np.ndarray:
    """Return the maps of the last layer that the record names, float32 ``(n, channels, height, width)``."""
    encoder: Any = combination.encoder
    return np.asarray(encoder.feature_maps(views)[-1].numpy())


def _colours(combination: Combination, used: ImageSet) -> PagePicture:
    views = _views(combination, used, _evenly(len(used), _MAPPED))
    colours = principal_colours(_maps(combination, views))
    tiles = [enlarged(view, _MAPPED_PX, smooth=True) for view in views]
    tiles += [enlarged(picture, _MAPPED_PX, smooth=False) for picture in colours]
    return PagePicture(
        "Patches as colours",
        tile_pictures(tiles, len(views)),
        "Below each image, the first three principal components of its patch features as red, green and blue, the same "
        "for all images: patches of one colour are alike to the encoder.",
    )


def _similarities(
    combination: Combination, used: ImageSet, metrics: Mapping[str, Any], fold: FoldScores
) -> list[PagePicture]:
    minimum = metrics["protocol"]["evaluation"]["min_positives"]
    found = [
        (label["auc"]["value"], name)
        for name, label in metrics["labels"].items()
        if label["auc"]["value"] is not None and label["n_positive"] >= minimum
    ]
    best = [name for _, name in sorted(found, reverse=True)[:_LABELS]]
    pictures = (_similarity(combination, used, fold, name) for name in best)
    return [picture for picture in pictures if picture is not None]


def _similarity(combination: Combination, used: ImageSet, fold: FoldScores, name: str) -> PagePicture | None:
    label = used.label_names.index(name)
    outside = np.setdiff1d(np.arange(len(used)), fold.rows)
    sides = [outside[used.targets[outside, label] == value] for value in (1, 0)]
    order = np.argsort(-fold.scores[:, label], kind="stable")
    shown = [int(fold.rows[i]) for i in order if fold.targets[i, label] == 1][:_SHOWN]
    if not shown or not all(len(side) for side in sides):
        return None
    chosen = [[int(side[i]) for i in _evenly(len(side), _LEARNT)] for side in sides]
    positive, negative = (_maps(combination, _views(combination, used, rows)) for rows in chosen)
    centre = np.concatenate([positive, negative]).mean((0, 2, 3), dtype=np.float64)
    views = _views(combination, used, shown)
    heats = similarity_maps(_maps(combination, views), label_direction(positive, negative), centre)
    tiles = [enlarged(view, _MAPPED_PX, smooth=True) for view in views]
    limit = float(np.percentile(np.abs(heats), 98))
    tiles += [heat_over(tile, heat, limit) for tile, heat in zip(list(tiles), heats, strict=True)]
    return PagePicture(
        f"Where patches resemble {name}",
        tile_pictures(tiles, len(views)),
        f"The {len(views)} tested images with {name} of the highest scores. Red: the patch points from the mean patch "
        f"of {len(chosen[1])} images without the label to that of {len(chosen[0])} with it (images that this fold does "
        "not test). It is no outline of a finding: it may show what goes with it, as tubes, arms or the image's edge.",
    )
