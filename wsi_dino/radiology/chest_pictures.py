"""What the encoder really sees of a data set of radiographs, and what its patches tell: pictures for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wsi_dino.errors import EncoderError, ImageError
from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.patch_maps import enlarged, tile_pictures
from wsi_dino.evaluation.radiology_report import PagePicture
from wsi_dino.radiology.chest_image import grey_square_rgb, read_chest_image
from wsi_dino.radiology.chest_run import Combination
from wsi_dino.radiology.map_pictures import Looked, colour_picture, evenly, similarity_pictures

_SHEET, _SHEET_PX, _SHEET_COLUMNS = 24, 128, 8
_MAPPED = 6


def chest_pictures(
    combination: Combination, metrics: Mapping[str, Any], folds: Sequence[FoldScores]
) -> list[PagePicture]:
    """Return the contact sheet, the patches as colours, and where patches resemble the best-found labels."""
    used, encoder = combination.used, combination.shown_encoder

    def views(row: int) -> np.ndarray | None:
        try:
            grey = read_chest_image(used.root / str(used.files[row])).grey
        except ImageError:
            return None
        return grey_square_rgb(grey, combination.view)[None]

    def maps(pixels: np.ndarray) -> np.ndarray:
        """Of the last layer that the record names."""
        return np.asarray(encoder.feature_maps(pixels)[-1].numpy())

    looked = Looked(views, maps, used.label_names, used.targets, "images")
    pictures = [_contact_sheet(np.concatenate(looked.of(evenly(len(used), _SHEET))), combination)]
    try:
        few = np.concatenate(looked.of(evenly(len(used), _MAPPED)))
        pictures.append(colour_picture(few, maps(few), "image"))
        pictures += similarity_pictures(looked, metrics, folds[0])
    except EncoderError as error:  # networks of which no feature map is known
        pictures[0] = replace(pictures[0], caption=f"{pictures[0].caption} No maps: {error}")
    return pictures


def _contact_sheet(views: np.ndarray, combination: Combination) -> PagePicture:
    tiles = [enlarged(view, _SHEET_PX, smooth=True) for view in views]
    caption = f"{len(tiles)} images spread over the table, as the encoder gets them: {combination.view.text}."
    return PagePicture("What the encoder is shown", tile_pictures(tiles, _SHEET_COLUMNS), caption)
