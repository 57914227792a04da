"""Annotated regions of slides: found by slide id in a folder, read from ASAP's XML or GeoJSON, painted as masks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.contours import read_contours
from wsi_dino.pathology.polygon_regions import read_polygon_regions
from wsi_dino.pathology.tissue import Tissue
from wsi_dino.pathology.tissue_mask import rasterise

_SUFFIXES = (".xml", ".geojson", ".json")


def find_annotations(folder: Path) -> dict[str, Path]:
    """Return the annotation file of each slide, by slide id, from anywhere below a folder.

    Raises:
        ConfigError: no such folder, none in it, or two for one slide.
    """
    if not folder.is_dir():
        raise ConfigError(f"Looking for annotations in {folder}: there is no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise ConfigError(
                f"Looking for annotations in {folder}: slide {path.stem} has two, {found[path.stem]} and {path}. "
                "Take one away."
            )
        found[path.stem] = path
    if not found:
        raise ConfigError(f"Looking for annotations in {folder}: no SLIDE.xml (ASAP) and no SLIDE.geojson (QuPath).")
    return found


def read_annotations(path: Path) -> Tissue:
    """Read the annotated regions of one slide.

    Raises:
        SlideError: the file is missing, of another form, or without a region.
    """
    return read_contours(path) if path.suffix.lower() == ".geojson" else read_polygon_regions(path)


def annotated_mask(
    regions: Tissue, slide_wh_level0: tuple[int, int], mpp_xy: tuple[float, float], mask_mpp: float
) -> np.ndarray:
    """Paint regions on a grid of `mask_mpp` um/px whose corner is the slide's.

    Args:
        regions: polygons in level-0 px; ignored ones are cut out.
        slide_wh_level0: size of the slide.
        mpp_xy: um/px at level 0.
        mask_mpp: um/px of the mask.

    Returns:
        bool ``(height, width)``.
    """
    down = (mask_mpp / mpp_xy[0], mask_mpp / mpp_xy[1])
    wh = (math.ceil(slide_wh_level0[0] / down[0]), math.ceil(slide_wh_level0[1] / down[1]))
    painted = rasterise(regions.contours, regions.holes, down, wh) > 0
    if regions.ignored:
        painted &= rasterise(regions.ignored, [[] for _ in regions.ignored], down, wh) == 0
    return np.asarray(painted)
