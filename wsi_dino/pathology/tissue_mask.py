"""Tissue as pixels of an overview, and how much of any rectangle of the slide is tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsi_dino.pathology.opencv import cv2


def rasterise(
    contours: Sequence[np.ndarray],
    holes: Sequence[Sequence[np.ndarray]],
    downsample_xy: tuple[float, float],
    wh: tuple[int, int],
) -> np.ndarray:
    """Draw contours into a mask, their holes left out; islands in a hole are contours of their own.

    Args:
        contours: ``(n_points, 2)`` each, level-0 px.
        holes: for each contour its holes.
        downsample_xy: level-0 px in one px of the mask, per axis.
        wh: size of the mask.

    Returns:
        uint8 ``(height, width)`` of 0 and 1.
    """
    mask = np.zeros((wh[1], wh[0]), np.uint8)
    for contour, inner in zip(contours, holes, strict=True):
        outline = to_mask_px(contour, downsample_xy)
        low = np.maximum(outline.min(axis=0), 0)
        high = np.minimum(outline.max(axis=0) + 1, wh)
        if (high <= low).any():
            continue
        part = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(part, [outline - low], 1)
        for hole in inner:
            _cut_out(part, to_mask_px(hole, downsample_xy) - low)
        mask[low[1] : high[1], low[0] : high[0]] |= part
    return mask


def to_mask_px(points: np.ndarray, downsample_xy: tuple[float, float]) -> np.ndarray:
    """Return level-0 points as whole px of a mask, int32 ``(n_points, 2)``.

    Segmentation multiplies mask px by the downsample and cuts the fraction off; rounding up undoes that
    exactly. Points that a person drew (not whole numbers) are rounded.
    """
    scaled = np.asarray(points, np.float64).reshape(-1, 2) / downsample_xy
    is_whole = np.all(points == np.floor(points))
    return (np.ceil(scaled - 1e-9) if is_whole else np.rint(scaled)).astype(np.int32)


def _cut_out(mask: np.ndarray, hole: np.ndarray) -> None:
    """Clear the inside of `hole`; its own outline is the tissue around it and stays."""
    inside = np.zeros_like(mask)
    cv2.fillPoly(inside, [hole], 1)
    cv2.polylines(inside, [hole], True, 0)
    mask[inside > 0] = 0


class AreaTable:
    """Exact tissue area of any rectangle, from one pass over a mask.

    Args:
        mask: uint8 ``(height, width)`` of 0 and 1.
        downsample_xy: level-0 px in one px of the mask, per axis.

    Examples:
        >>> table = AreaTable(np.array([[1, 0], [0, 0]], np.uint8), (10.0, 10.0))
        >>> table.fraction(np.array([[0, 0], [5, 0], [10, 10]]), (10, 10)).tolist()
        [1.0, 0.5, 0.0]
    """

    def __init__(self, mask: np.ndarray, downsample_xy: tuple[float, float]) -> None:
        self._sums = cv2.integral(mask).astype(np.float64)
        self._downsample_xy = downsample_xy

    def fraction(self, xy: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
        """Return float32 ``(n,)``: the share of tissue in rectangles of `wh` level-0 px at `xy`.

        What lies outside of the mask is not tissue. Mask px cut by an edge count by their part.
        """
        left, top = (xy[:, axis] / self._downsample_xy[axis] for axis in (0, 1))
        right, bottom = ((xy[:, axis] + wh[axis]) / self._downsample_xy[axis] for axis in (0, 1))
        area = self._sum(right, bottom) - self._sum(left, bottom) - self._sum(right, top) + self._sum(left, top)
        whole = wh[0] * wh[1] / (self._downsample_xy[0] * self._downsample_xy[1])
        return np.clip(area / whole, 0.0, 1.0).astype(np.float32)

    def lattice_fraction(self, columns: np.ndarray, rows: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
        """Return what `fraction` says of the rectangles at every (column, row), as float32 ``(n_rows, n_columns)``."""
        edges = [
            np.concatenate([start, start + side]) / downsample
            for start, side, downsample in zip((columns, rows), wh, self._downsample_xy, strict=True)
        ]
        across = _interpolated(self._sums, edges[1])
        sums = _interpolated(np.ascontiguousarray(across.T), edges[0]).T
        n_rows, n_columns = len(rows), len(columns)
        top, bottom = sums[:n_rows], sums[n_rows:]
        area = bottom[:, n_columns:] - bottom[:, :n_columns] - top[:, n_columns:] + top[:, :n_columns]
        whole = wh[0] * wh[1] / (self._downsample_xy[0] * self._downsample_xy[1])
        return np.clip(area / whole, 0.0, 1.0).astype(np.float32)

    def _sum(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Tissue above and left of (x, y), which need not be whole."""
        height, width = self._sums.shape[0] - 1, self._sums.shape[1] - 1
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(np.int64), width - 1), np.minimum(y.astype(np.int64), height - 1)
        part_x, part_y = x - column, y - row
        upper = self._sums[row, column] * (1 - part_x) + self._sums[row, column + 1] * part_x
        lower = self._sums[row + 1, column] * (1 - part_x) + self._sums[row + 1, column + 1] * part_x
        return upper * (1 - part_y) + lower * part_y


def _interpolated(sums: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the rows of `sums` at places `at`, which need not be whole."""
    at = np.clip(at, 0, len(sums) - 1)
    row = np.minimum(at.astype(np.int64), len(sums) - 2)
    part = (at - row)[:, None]
    return np.asarray(sums[row] * (1 - part) + sums[row + 1] * part)
