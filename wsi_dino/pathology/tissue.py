"""Finding tissue on a slide: contours with holes, in level-0 px.

The segmenter is CLAM's: saturation, median, threshold, closing, contours in two levels, areas. It does
exactly what mahmoodlab/CLAM does at commit 53e2409 when the picture is that of a whole level as stored
(`read_for_clam`); the default reads it on white and leaves pen and ink out (`read_for_tissue`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wsi_dino.errors import SlideError
from wsi_dino.pathology.ink import find_ink
from wsi_dino.pathology.opencv import cv2
from wsi_dino.pathology.slide import Slide
from wsi_dino.pathology.tissue_mask import rasterise
from wsi_dino.pathology.tissue_spec import TissueSpec

_SEG_DOWNSAMPLE = 64.0
_CLAM_LIMIT_PX = 100_000_000
_LONGEST_COUNTED_SIDE = 21  # half of the square of a longer one does not fit a byte
_OVERVIEW_SIDE_PX = 2048  # a finer picture costs time and finds the same tissue


@dataclass(frozen=True)
class Overview:
    """A whole slide as one picture.

    Attributes:
        rgb: uint8 ``(height, width, 3)``.
        downsample_xy: level-0 px in one px of it, per axis.
    """

    rgb: np.ndarray
    downsample_xy: tuple[float, float]

    @property
    def wh(self) -> tuple[int, int]:
        """Width and height in px."""
        return int(self.rgb.shape[1]), int(self.rgb.shape[0])


@dataclass(frozen=True)
class Tissue:
    """Pieces of tissue.

    Attributes:
        contours: outlines, ``(n_points, 2)`` each, x, y in level-0 px (int32 when segmented; float64
            where a person drew them).
        holes: for each contour the outlines of its holes.
        ignored: areas that a person marked as not tissue, wherever they lie.
    """

    contours: list[np.ndarray]
    holes: list[list[np.ndarray]]
    ignored: list[np.ndarray] = field(default_factory=list)

    def mask(self, overview: Overview) -> np.ndarray:
        """Return uint8 ``(height, width)``, 1 where there is tissue, in px of `overview`."""
        mask = rasterise(self.contours, self.holes, overview.downsample_xy, overview.wh)
        if self.ignored:
            mask &= 1 - rasterise(self.ignored, [[] for _ in self.ignored], overview.downsample_xy, overview.wh)
        return mask


def seg_level_of(slide: Slide, spec: TissueSpec) -> int:
    """Return the level that is segmented: the one asked for, or the coarsest with a downsample of at most 64.

    Raises:
        SlideError: the slide has no such level.
    """
    if spec.seg_level >= len(slide.level_dimensions):
        raise SlideError(
            f"Segmenting {slide.path}: --seg-level {spec.seg_level}, but its levels are 0 to "
            f"{len(slide.level_dimensions) - 1}. Use --seg-level -1 to have one chosen for each slide."
        )
    return spec.seg_level if spec.seg_level >= 0 else slide.best_level_for_downsample(_SEG_DOWNSAMPLE)


def read_for_clam(slide: Slide, spec: TissueSpec) -> Overview:
    """Read the level to be segmented as stored, without laying transparent pixels on white.

    Raises:
        SlideError: the level is absent or has more than 1e8 px, which CLAM refuses too.
    """
    level = seg_level_of(slide, spec)
    _check_size(slide, level)
    return Overview(slide.read_level_rgb_raw(level), slide.level_downsamples[level])


def read_for_tissue(slide: Slide, spec: TissueSpec) -> Overview:
    """Read the level to be segmented on white.

    Where the level is chosen here and is longer than 2048 px (plain images, slides with few levels), it is
    averaged down to that as it is read, so that memory stays bounded.

    Raises:
        SlideError: the level is absent, cannot be read, or was asked for and has more than 1e8 px.
    """
    level = seg_level_of(slide, spec)
    wh = slide.level_dimensions[level]
    if spec.seg_level < 0 and max(wh) > _OVERVIEW_SIDE_PX:
        return Overview(*slide.read_overview(_OVERVIEW_SIDE_PX))
    _check_size(slide, level)
    return Overview(slide.read_level((0, 0), level, wh), slide.level_downsamples[level])


def _check_size(slide: Slide, level: int) -> None:
    width, height = slide.level_dimensions[level]
    if width * height > _CLAM_LIMIT_PX:
        raise SlideError(
            f"Segmenting {slide.path}: level {level} has {width}x{height} px, more than the 1e8 at which CLAM gives "
            "up. Choose a coarser --seg-level, or tile without --compat clam and --seg-level."
        )


def find_tissue(overview: Overview, spec: TissueSpec, *, every_point: bool = False) -> Tissue:
    """Segment tissue.

    Args:
        overview: the slide at the level to be segmented.
        spec: the request; `TissueSpec.seg_level` has been used by then.
        every_point: keep every pixel of an outline, as CLAM does, and not only its corners.

    Raises:
        ConfigError: the segmenter comes from tiatoolbox and that is not installed.
    """
    mask = tissue_pixels(overview, spec)
    return contours_of(mask, overview.downsample_xy, spec, every_point=every_point)


def tissue_pixels(overview: Overview, spec: TissueSpec) -> np.ndarray:
    """Return uint8 ``(height, width)``, 0 or 255, before small pieces and holes are sorted out."""
    if spec.segmenter != "clam":
        from wsi_dino.pathology.tissue_tiatoolbox import tiatoolbox_mask

        mask = tiatoolbox_mask(overview.rgb, overview.downsample_xy, spec.segmenter)
        return _without(mask, find_ink(overview.rgb, overview.downsample_xy[0])) if spec.no_pen else mask
    saturation = cv2.cvtColor(overview.rgb, cv2.COLOR_RGB2HSV)[:, :, 1]
    ink = find_ink(overview.rgb, overview.downsample_xy[0]) if spec.no_pen else None
    mask = _threshold(saturation if ink is None else _without(saturation, ink), spec)
    return mask if ink is None else _without(mask, ink)


def _without(image: np.ndarray, ink: np.ndarray) -> np.ndarray:
    return np.where(ink, np.uint8(0), image)


def _threshold(saturation: np.ndarray, spec: TissueSpec) -> np.ndarray:
    if spec.use_otsu or spec.mthresh > _LONGEST_COUNTED_SIDE:
        smooth = cv2.medianBlur(np.ascontiguousarray(saturation), spec.mthresh)
        kind = cv2.THRESH_BINARY + (cv2.THRESH_OTSU if spec.use_otsu else 0)
        _, mask = cv2.threshold(smooth, 0 if spec.use_otsu else spec.sthresh, 255, kind)
    else:
        mask = _median_above(saturation, spec.mthresh, spec.sthresh)
    if spec.close > 0:
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((spec.close, spec.close), np.uint8))
    return np.asarray(mask)


def _median_above(image: np.ndarray, side: int, limit: int) -> np.ndarray:
    """Return 255 where the median of the square around a pixel is above `limit`, else 0.

    That is where more than half of the square's pixels are: counting them takes a tenth of the time of sorting.
    """
    _, above = cv2.threshold(image, limit, 1, cv2.THRESH_BINARY)
    count = cv2.boxFilter(above, -1, (side, side), normalize=False, borderType=cv2.BORDER_REPLICATE)
    _, mask = cv2.threshold(count, side * side // 2, 255, cv2.THRESH_BINARY)
    return np.asarray(mask)


def contours_of(
    mask: np.ndarray, downsample_xy: tuple[float, float], spec: TissueSpec, *, every_point: bool = False
) -> Tissue:
    """Return the outlines of a mask in level-0 px, small pieces and small holes left out.

    Areas are those of the outlines in mask px; the unit is ``int(ref_patch_size**2 / (dx * dy))`` of them.
    """
    chain = cv2.CHAIN_APPROX_NONE if every_point else cv2.CHAIN_APPROX_SIMPLE
    outlines, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, chain)
    if hierarchy is None:
        return Tissue([], [])
    unit = int(spec.ref_patch_size**2 / (downsample_xy[0] * downsample_xy[1]))
    parent = hierarchy.reshape(-1, 4)[:, 3]
    areas = np.array([cv2.contourArea(outline) for outline in outlines])
    inner: dict[int, list[int]] = {}
    for index in np.flatnonzero(parent >= 0).tolist():
        inner.setdefault(int(parent[index]), []).append(index)
    kept = [
        index
        for index in np.flatnonzero(parent == -1).tolist()
        if _is_large(areas[index] - areas[inner.get(index, [])].sum(), spec.a_t * unit)
    ]
    holes = [_largest_holes(inner.get(index, []), areas, spec.max_n_holes, spec.a_h * unit) for index in kept]
    return Tissue(
        [_to_level0(outlines[index], downsample_xy) for index in kept],
        [[_to_level0(outlines[hole], downsample_xy) for hole in of_one] for of_one in holes],
    )


def _is_large(area: float, limit: float) -> bool:
    return area != 0 and area > limit


def _largest_holes(holes: list[int], areas: np.ndarray, count: int, limit: float) -> list[int]:
    by_size = sorted(holes, key=lambda hole: areas[hole], reverse=True)[:count]
    return [hole for hole in by_size if areas[hole] > limit]


def _to_level0(outline: np.ndarray, downsample_xy: tuple[float, float]) -> np.ndarray:
    return np.array(outline * downsample_xy, dtype=np.int32).reshape(-1, 2)
