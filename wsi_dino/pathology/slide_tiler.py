"""One slide: from the file to its tiles, contours and thumbnail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import MissingMppError
from wsi_dino.pathology.clam_grid import ClamGridPlan, plan_clam_grid
from wsi_dino.pathology.contours import read_contours, tissue_sha256
from wsi_dino.pathology.discovery import SlideSource
from wsi_dino.pathology.global_grid import plan_global_grid
from wsi_dino.pathology.mpp import Mpp, ResolvedMpp, resolve_mpp
from wsi_dino.pathology.slide import Slide, open_slide
from wsi_dino.pathology.thumbnail import draw_thumbnail, read_for_thumbnail
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.pathology.tiling_spec import TileGeometry, TilingSpec, plan_geometry
from wsi_dino.pathology.tissue import Overview, Tissue, find_tissue, read_for_clam, read_for_tissue
from wsi_dino.pathology.tissue_mask import AreaTable
from wsi_dino.pathology.tissue_spec import TissueSpec
from wsi_dino.provenance import fingerprint

_ALGORITHM = "tiles/1"  # raise it when equal requests give other tiles than before


@dataclass(frozen=True)
class TileRequest:
    """All that is asked of every slide of a run.

    Attributes:
        tissue: what is tissue.
        tiling: which tiles are cut.
        mpp_table: um/px by slide_id.
        trust_table: let the table win over the file.
        assume_mpp: um/px of slides that nothing speaks of.
        contours: folder of edited ``SLIDE.geojson`` that replace the segmentation.
        backend: reader, as in `open_slide`.
    """

    tissue: TissueSpec
    tiling: TilingSpec
    mpp_table: Mapping[str, Mpp] | None = None
    trust_table: bool = False
    assume_mpp: float | None = None
    contours: Path | None = None
    backend: str = "auto"

    def contours_of(self, slide_id: str) -> Path | None:
        """Return the file of edited contours of a slide, whether it is there or not."""
        return None if self.contours is None else self.contours / f"{slide_id}.geojson"

    def fingerprint_of(self, slide_id: str, slide_fingerprint: str) -> str:
        """Return what tells whether a finished slide is still what is asked for."""
        edited = self.contours_of(slide_id)
        edited_text = edited.read_bytes().hex() if edited is not None and edited.is_file() else None
        in_table = None if self.mpp_table is None else self.mpp_table.get(slide_id)
        mpp = [in_table, self.trust_table, self.assume_mpp]
        return fingerprint(_ALGORITHM, self.tissue, self.tiling, mpp, edited_text, self.backend, slide_fingerprint)


@dataclass(frozen=True)
class PlacedTiles:
    """The tiles of one slide and the tissue they lie on.

    Attributes:
        grid: its tiles; may be empty.
        tissue: its tissue contours.
        overview: the picture that was segmented.
        tissue_mm2: tissue area, or None when the resolution is unknown.
        empty_reason: why there are no tiles; empty when there are some.
    """

    grid: TileGrid
    tissue: Tissue
    overview: Overview
    tissue_mm2: float | None
    empty_reason: str


@dataclass(frozen=True)
class TiledSlide:
    """What came out of one slide.

    Attributes:
        placed: its tiles and tissue.
        thumbnail: uint8 RGB ``(height, width, 3)`` with both drawn.
        backend: the reader that was used.
    """

    placed: PlacedTiles
    thumbnail: np.ndarray
    backend: str

    @property
    def grid(self) -> TileGrid:
        """Its tiles."""
        return self.placed.grid


def tile_slide(source: SlideSource, request: TileRequest, slide_fingerprint: str) -> TiledSlide:
    """Find the tissue of a slide, place its tiles and draw both.

    Raises:
        SlideError: the slide cannot be opened or read, has no known resolution where one is needed, or is
            coarser than what is asked for; or its edited contours are missing or broken.
    """
    with open_slide(source.path, slide_id=source.slide_id, backend=request.backend) as slide:
        placed = place_tiles(slide, request, slide_fingerprint)
        picture = read_for_thumbnail(slide, placed.overview)
    return TiledSlide(placed, draw_thumbnail(picture, placed.tissue, placed.grid), slide.backend)


def place_tiles(slide: Slide, request: TileRequest, slide_fingerprint: str) -> PlacedTiles:
    """Find the tissue of an opened slide and place its tiles.

    Raises:
        SlideError: as `tile_slide`.
    """
    mpp = _resolution(slide, request)
    mpp_xy = None if mpp is None else mpp.mpp_xy
    geometry = plan_geometry(slide.slide_id, slide.level_downsamples, request.tiling, mpp_xy)
    overview, tissue = _tissue(slide, request)
    mask = tissue.mask(overview)
    placed = _place(slide, request.tiling, geometry, tissue, AreaTable(mask, overview.downsample_xy))
    grid = _grid(slide, request, geometry, mpp, placed, slide_fingerprint, tissue)
    reason = "" if len(grid) else _why_empty(grid, mask, request)
    return PlacedTiles(grid, tissue, overview, _tissue_mm2(mask, overview, mpp_xy), reason)


def _resolution(slide: Slide, request: TileRequest) -> ResolvedMpp | None:
    """Resolve um/px; None when there is none and it is not needed."""
    try:
        return resolve_mpp(
            slide, table=request.mpp_table, trust_table=request.trust_table, assume_mpp=request.assume_mpp
        )
    except MissingMppError:
        if isinstance(request.tiling.mpp, float):
            raise
        return None


def _tissue(slide: Slide, request: TileRequest) -> tuple[Overview, Tissue]:
    is_clam = request.tiling.compat == "clam"
    overview = (read_for_clam if is_clam else read_for_tissue)(slide, request.tissue)
    edited = request.contours_of(slide.slide_id)
    if edited is not None:
        return overview, read_contours(edited)
    return overview, find_tissue(overview, request.tissue, every_point=is_clam)


def _place(
    slide: Slide, spec: TilingSpec, geometry: TileGeometry, tissue: Tissue, table: AreaTable
) -> tuple[np.ndarray, np.ndarray]:
    slide_wh = slide.level_dimensions[0]
    if spec.compat is None:
        return plan_global_grid(
            slide_wh,
            geometry.tile_wh_level0,
            geometry.stride_xy_level0,
            table,
            min_tissue=spec.min_tissue,
            padding=spec.padding,
        )
    plan = ClamGridPlan(
        tile_px=spec.tile_px,
        stride_px=spec.step_px,
        downsample_xy=geometry.level_downsample_xy,
        contour_rule=spec.contour_rule,
        padding=spec.padding,
        slide_wh=slide_wh,
    )
    holes = [[_whole(hole) for hole in [*of_one, *tissue.ignored]] for of_one in tissue.holes]
    xy = plan_clam_grid([_whole(contour) for contour in tissue.contours], holes, plan)
    return xy, table.fraction(xy, geometry.tile_wh_level0)


def _whole(outline: np.ndarray) -> np.ndarray:
    return np.rint(outline).astype(np.int64)


def _grid(
    slide: Slide,
    request: TileRequest,
    geometry: TileGeometry,
    mpp: ResolvedMpp | None,
    placed: tuple[np.ndarray, np.ndarray],
    slide_fingerprint: str,
    tissue: Tissue,
) -> TileGrid:
    spec: dict[str, Any] = {
        "tissue": request.tissue.model_dump(mode="json"),
        "tiling": request.tiling.model_dump(mode="json"),
    }
    if request.contours is not None:
        spec["contours_sha256"] = tissue_sha256(tissue)
    mpp_xy, mpp_source = (None, "unknown") if mpp is None else (mpp.mpp_xy, mpp.source)
    return TileGrid(
        slide_id=slide.slide_id,
        slide_fingerprint=slide_fingerprint,
        xy=placed[0],
        tissue_fraction=placed[1],
        tile_px=request.tiling.tile_px,
        tile_wh_level0=geometry.tile_wh_level0,
        stride_xy_level0=geometry.stride_xy_level0,
        level=geometry.level,
        read_wh=geometry.read_wh,
        level_downsample_xy=geometry.level_downsample_xy,
        slide_wh_level0=slide.level_dimensions[0],
        mpp_xy=mpp_xy,
        mpp_source=mpp_source,
        mpp_asked=request.tiling.asked,
        mpp_found_xy=geometry.mpp_found_xy,
        spec=spec,
        fingerprint=fingerprint(_ALGORITHM, spec, slide_fingerprint, mpp_xy, mpp_source, slide.backend),
    )


def _why_empty(grid: TileGrid, mask: np.ndarray, request: TileRequest) -> str:
    if not mask.any():
        where = f"in {request.contours_of(grid.slide_id)}" if request.contours else "found"
        advice = "" if request.contours else "; lower --sthresh or --a-t, or draw it and give --contours"
        return f"no tissue {where}{advice}"
    if any(side < tile for side, tile in zip(grid.slide_wh_level0, grid.tile_wh_level0, strict=True)):
        slide, tile = "x".join(map(str, grid.slide_wh_level0)), "x".join(map(str, grid.tile_wh_level0))
        return f"the slide ({slide} px) is smaller than one tile ({tile} px at level 0)"
    if request.tiling.compat:
        return f"tissue found, but no tile meets the contour rule {request.tiling.contour_rule}"
    return f"tissue found, but no tile holds {request.tiling.min_tissue:.0%} of it; lower --min-tissue"


def _tissue_mm2(mask: np.ndarray, overview: Overview, mpp_xy: tuple[float, float] | None) -> float | None:
    if mpp_xy is None:
        return None
    side_mm = [d * m / 1000 for d, m in zip(overview.downsample_xy, mpp_xy, strict=True)]
    return round(float(np.count_nonzero(mask)) * side_mm[0] * side_mm[1], 4)
