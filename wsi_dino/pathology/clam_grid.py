"""CLAM's own tile coordinates, value for value and in order.

Every contour has a grid of its own, anchored at its bounding box, so that neighbouring contours may
give overlapping tiles and nothing is thrown out twice; downsamples are cut to whole numbers. That is
how CLAM does it and what features made with it rest on; `global_grid` is the better grid.
Source: the behaviour of mahmoodlab/CLAM at commit 53e2409 (Lu et al., Nature Biomedical Engineering 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsi_dino.pathology.polygon_test import EDGE, INSIDE, side_of_polygon

ContourRule = Literal["four_pt", "four_pt_hard", "center", "basic"]


@dataclass(frozen=True)
class ClamGridPlan:
    """What CLAM is told about the grid.

    Attributes:
        tile_px: side of a tile in px of the level that is read.
        stride_px: step in px of that level.
        downsample_xy: per-axis downsample of that level; CLAM cuts it to a whole number.
        contour_rule: which points of a tile must lie in the contour.
        padding: keep tiles that stick out of the slide.
        slide_wh: width and height of level 0.
    """

    tile_px: int
    stride_px: int
    downsample_xy: tuple[float, float]
    contour_rule: ContourRule
    padding: bool
    slide_wh: tuple[int, int]

    @property
    def tile_wh(self) -> tuple[int, int]:
        """Footprint that CLAM computes with, in level-0 px."""
        return self.tile_px * int(self.downsample_xy[0]), self.tile_px * int(self.downsample_xy[1])

    @property
    def stride_xy(self) -> tuple[int, int]:
        """Step in level-0 px."""
        return self.stride_px * int(self.downsample_xy[0]), self.stride_px * int(self.downsample_xy[1])


def plan_clam_grid(
    contours: Sequence[np.ndarray], holes: Sequence[Sequence[np.ndarray]], plan: ClamGridPlan
) -> np.ndarray:
    """Return CLAM's coordinates of all contours, one after the other.

    Args:
        contours: int ``(n_points, 2)`` each, level-0 px.
        holes: for each contour its holes, in the same form.
        plan: the request.

    Returns:
        int64 ``(n_tiles, 2)``: top-left x, y in level-0 px; within a contour x is the slow axis.
    """
    parts = [_one_contour(contour, inner, plan) for contour, inner in zip(contours, holes, strict=True)]
    return np.concatenate([np.zeros((0, 2), np.int64), *parts])


def _one_contour(contour: np.ndarray, holes: Sequence[np.ndarray], plan: ClamGridPlan) -> np.ndarray:
    x, y = _candidates(contour, plan)
    if len(x) == 0 or len(y) == 0:
        return np.zeros((0, 2), np.int64)
    keep = _passes_contour(contour, x, y, plan)
    middle = plan.tile_wh[0] / 2  # CLAM takes the width for both axes, here and in the contour rules
    for hole in holes:
        _drop_in_hole(keep, hole, x + middle, y + middle)
    column, row = np.nonzero(keep)
    return np.stack([x[column], y[row]], axis=1)


def _candidates(contour: np.ndarray, plan: ClamGridPlan) -> tuple[np.ndarray, np.ndarray]:
    start, stop = contour.min(axis=0), contour.max(axis=0) + 1
    if not plan.padding:
        stop = np.minimum(stop, np.array(plan.slide_wh) - plan.tile_wh + 1)
    x, y = (np.arange(start[axis], stop[axis], plan.stride_xy[axis], dtype=np.int64) for axis in (0, 1))
    return x, y


def _passes_contour(contour: np.ndarray, x: np.ndarray, y: np.ndarray, plan: ClamGridPlan) -> np.ndarray:
    half = plan.tile_wh[0] // 2
    if plan.contour_rule == "basic":
        return side_of_polygon(contour, x, y) >= EDGE
    shift = 0 if plan.contour_rule == "center" else int(half * 0.5)
    if shift == 0:
        return side_of_polygon(contour, x + half, y + half) >= EDGE
    corners = [
        side_of_polygon(contour, x + half + dx, y + half + dy) >= EDGE
        for dx in (-shift, shift)
        for dy in (-shift, shift)
    ]
    combine = np.logical_or if plan.contour_rule == "four_pt" else np.logical_and
    return combine.reduce(corners)


def _drop_in_hole(keep: np.ndarray, hole: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Unset `keep` where the point is strictly inside `hole`; only the part of the lattice at the hole is tested."""
    low, high = hole.min(axis=0), hole.max(axis=0)
    columns = slice(np.searchsorted(x, low[0]), np.searchsorted(x, high[0], side="right"))
    rows = slice(np.searchsorted(y, low[1]), np.searchsorted(y, high[1], side="right"))
    if columns.start < columns.stop and rows.start < rows.stop:
        keep[columns, rows] &= side_of_polygon(hole, x[columns], y[rows]) != INSIDE
