"""The annotated truth of one slide, in the forms that FROC and the pointing game ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_dino.errors import SlideError
from wsi_dino.evaluation.froc import Lesions, find_lesions
from wsi_dino.evaluation.pointing_game import Pointing, point
from wsi_dino.pathology.annotations import annotated_mask, read_annotations
from wsi_dino.pathology.tissue_mask import AreaTable


@dataclass(frozen=True)
class LesionMap:
    """Annotated px and the lesions that they make.

    Attributes:
        annotated: bool ``(height, width)``, as drawn.
        lesions: as evaluated, see `find_lesions`.
        downsample_xy: level-0 px along a px of both.
    """

    annotated: np.ndarray
    lesions: Lesions
    downsample_xy: tuple[float, float]

    def point(
        self, slide_id: str, values: np.ndarray, xy_level0: np.ndarray, tile_wh_level0: tuple[int, int]
    ) -> Pointing:
        """Play the pointing game with the tiles of the slide, against the regions as drawn."""
        centres = (xy_level0 + np.asarray(tile_wh_level0) / 2) / self.downsample_xy
        height, width = self.annotated.shape
        column, row = np.clip(np.floor(centres).astype(int).T, 0, [[width - 1], [height - 1]])
        share = AreaTable(self.annotated.astype(np.uint8), self.downsample_xy).fraction(xy_level0, tile_wh_level0)
        return point(slide_id, values, self.annotated[row, column], share)


def lesion_map(
    annotation: Path | None, slide_wh_level0: tuple[int, int], mpp_xy: tuple[float, float], mask_mpp: float
) -> LesionMap:
    """Paint the annotation of a slide and find its lesions.

    Args:
        annotation: ASAP's XML or GeoJSON; None for a normal slide.
        slide_wh_level0: size of the slide.
        mpp_xy: its um/px at level 0.
        mask_mpp: um/px at which lesions are found.

    Raises:
        SlideError: the annotation is missing, of another form, or lies beside the slide.
    """
    downsample_xy = (mask_mpp / mpp_xy[0], mask_mpp / mpp_xy[1])
    if annotation is None:
        nothing = np.zeros((1, 1), bool)
        return LesionMap(nothing, find_lesions(nothing, mask_mpp), downsample_xy)
    annotated = annotated_mask(read_annotations(annotation), slide_wh_level0, mpp_xy, mask_mpp)
    if not annotated.any():
        raise SlideError(
            f"Reading annotations {annotation}: none of its regions lies on the slide of {slide_wh_level0} px. "
            "Are they of another slide, or not in level-0 px?"
        )
    return LesionMap(annotated, find_lesions(annotated, mask_mpp), downsample_xy)
