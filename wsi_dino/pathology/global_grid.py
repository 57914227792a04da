"""One grid for the whole slide: anchored at (0, 0), each tile once, ordered by (y, x).

Whether a tile is kept depends on the tissue in it alone, not on which contour it came from, so that
equal tissue gives equal tiles wherever its outline begins.
"""

from __future__ import annotations

import numpy as np

from wsi_dino.pathology.tissue_mask import AreaTable


def plan_global_grid(
    slide_wh: tuple[int, int],
    tile_wh: tuple[int, int],
    stride_xy: tuple[int, int],
    tissue: AreaTable,
    *,
    min_tissue: float,
    padding: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles with enough tissue, and how much tissue is in each.

    Args:
        slide_wh: size of the slide in level-0 px.
        tile_wh: footprint of a tile in level-0 px.
        stride_xy: step of the grid in level-0 px.
        tissue: areas of tissue.
        min_tissue: smallest share of tissue in a tile, inclusive; a tile without any is never kept.
        padding: also take tiles that begin inside the slide and end outside of it; otherwise only whole
            ones, which leaves out up to one tile's width at the right and at the bottom.

    Returns:
        int64 ``(n, 2)`` top-left x, y in level-0 px, ordered by (y, x); float32 ``(n,)`` share of tissue.

    Examples:
        >>> table = AreaTable(np.array([[1, 1], [0, 0]], np.uint8), (10.0, 10.0))
        >>> xy, share = plan_global_grid((20, 20), (10, 10), (10, 10), table, min_tissue=0.5)
        >>> xy.tolist(), share.tolist()
        ([[0, 0], [10, 0]], [1.0, 1.0])
    """
    columns, rows = (_starts(slide_wh[axis], tile_wh[axis], stride_xy[axis], padding) for axis in (0, 1))
    share = tissue.lattice_fraction(columns, rows, tile_wh)
    row, column = np.nonzero((share >= min_tissue) & (share > 0))
    return np.stack([columns[column], rows[row]], axis=1), share[row, column]


def _starts(side: int, tile: int, stride: int, padding: bool) -> np.ndarray:
    return np.arange(0, side if padding else side - tile + 1, stride, dtype=np.int64)
