"""Inside, on the edge or outside: exact point-in-polygon tests for a whole lattice of points at once."""

from __future__ import annotations

import numpy as np

INSIDE, EDGE, OUTSIDE = 1, 0, -1


def side_of_polygon(polygon: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tell for each point of the lattice `x` times `y` whether it lies inside, on the edge of or outside a polygon.

    The answer equals OpenCV's ``pointPolygonTest(polygon, (x, y), False)`` for every point (even-odd
    rule, edge and corners exact), but costs one pass over the polygon for all points together: every
    edge is cut with the rows it spans, in whole numbers, and each point counts the cuts to its right.

    Args:
        polygon: int ``(n_points, 2)`` corners x, y; closed implicitly.
        x: int or half-integer ``(n_x,)`` columns of the lattice, ascending.
        y: int or half-integer ``(n_y,)`` rows of the lattice, ascending.

    Returns:
        int8 ``(n_x, n_y)``: 1 inside, 0 on the edge, -1 outside.

    Examples:
        >>> square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
        >>> side_of_polygon(square, np.array([-1, 0, 2]), np.array([2])).ravel().tolist()
        [-1, 0, 1]
    """
    columns, rows = _doubled(x), _doubled(y)
    start = 2 * polygon.astype(np.int64).reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    cut_row, cut_x, is_exact = _cuts(start, end, rows)
    order = np.lexsort((cut_x, cut_row))
    keys, span, origin = _row_keys(cut_row[order], cut_x[order], columns)
    lattice = np.arange(len(rows))[:, None] * span + (columns - origin)[None, :]
    ends = np.searchsorted(cut_row[order], np.arange(len(rows)), side="right")
    n_right = ends[:, None] - np.searchsorted(keys, lattice.ravel(), side="right").reshape(lattice.shape)
    side = np.where(n_right % 2 == 1, INSIDE, OUTSIDE).astype(np.int8)
    side[np.isin(lattice, keys[is_exact[order]])] = EDGE
    _mark_level_edges(side, start, end, columns, rows)
    return side.T


def _doubled(values: np.ndarray) -> np.ndarray:
    return np.rint(2 * np.asarray(values)).astype(np.int64)


def _cuts(start: np.ndarray, end: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut every edge with the rows it spans (lower end included): row index, x rounded up, whether x was whole."""
    downwards = (end[:, 1] > start[:, 1])[:, None]
    low, high = np.where(downwards, start, end), np.where(downwards, end, start)
    first, last = np.searchsorted(rows, low[:, 1]), np.searchsorted(rows, high[:, 1])
    edge, row = _expanded(first, last - first)
    rise = high[edge, 1] - low[edge, 1]
    shift = (rows[row] - low[edge, 1]) * (high[edge, 0] - low[edge, 0])
    return row, low[edge, 0] - (-shift) // rise, shift % rise == 0


def _expanded(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeat each index `count` times beside first, first + 1, ..."""
    index = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
    return index, first[index] + within


def _row_keys(row: np.ndarray, x: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Fold (row, x) into one ascending number; cuts left or right of all columns keep their side."""
    origin = int(columns[0]) - 1
    span = int(columns[-1]) + 1 - origin + 1
    return row * span + np.clip(x - origin, 0, span - 1), span, origin


def _mark_level_edges(
    side: np.ndarray, start: np.ndarray, end: np.ndarray, columns: np.ndarray, rows: np.ndarray
) -> None:
    """Mark the lattice points on horizontal edges and on corners, which cuts alone do not see."""
    row = np.searchsorted(rows, start[:, 1])
    on_row = (row < len(rows)) & (rows[np.minimum(row, len(rows) - 1)] == start[:, 1])
    level = start[:, 1] == end[:, 1]
    left = np.where(level, np.minimum(start[:, 0], end[:, 0]), start[:, 0])[on_row]
    right = np.where(level, np.maximum(start[:, 0], end[:, 0]), start[:, 0])[on_row]
    first, last = np.searchsorted(columns, left), np.searchsorted(columns, right, side="right")
    edge, column = _expanded(first, last - first)
    side[row[on_row][edge], column] = EDGE
