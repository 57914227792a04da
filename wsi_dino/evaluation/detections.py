"""Tiles with high scores thinned out to detections: the best first, none within a radius of a better one."""

from __future__ import annotations

import numpy as np


def suppress_neighbours(scores: np.ndarray, xy_um: np.ndarray, radius_um: float) -> np.ndarray:
    """Keep a tile when no better one that was kept lies within `radius_um` of it.

    Args:
        scores: float ``(n,)``; of equal ones the earlier counts as better.
        xy_um: float ``(n, 2)``, centres.
        radius_um: the distance itself is still too near.

    Returns:
        int64 indices of the tiles kept, best first.

    Examples:
        >>> suppress_neighbours(np.array([0.9, 0.8, 0.7]), np.array([[0, 0], [10, 0], [30, 0]]), 15.0).tolist()
        [0, 2]
    """
    from scipy.spatial import cKDTree

    order = np.argsort(-scores, kind="stable")
    neighbours = cKDTree(xy_um).query_ball_point(xy_um, radius_um * (1 + 1e-9)) if len(scores) else []
    is_open, kept = np.ones(len(scores), bool), []
    for index in order:
        if is_open[index]:
            kept.append(index)
            is_open[neighbours[index]] = False
    return np.array(kept, np.int64)
