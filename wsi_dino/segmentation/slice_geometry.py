"""How large a slice is shown to the encoder, and where its voxels lie among the cells of the feature maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SliceGeometry:
    """A slice enlarged, at the top left of a square that the encoder sees; the rest of the square is black.

    Attributes:
        height, width: of the slice, in voxels.
        height_px, width_px: enlarged.
        side_px: of the square.
        cell_px: side of a cell, the coarsest stride of the encoder's maps.
    """

    height: int
    width: int
    height_px: int
    width_px: int
    side_px: int
    cell_px: int

    @property
    def rows(self) -> int:
        """Cells from top to bottom of the slice, the last one perhaps partly beyond."""
        return math.ceil(self.height_px / self.cell_px)

    @property
    def cols(self) -> int:
        """Cells from left to right."""
        return math.ceil(self.width_px / self.cell_px)

    def row_positions(self) -> npt.NDArray[np.float32]:
        """Return where the centre of each row of voxels lies, in cells."""
        return _positions(self.height, self.height_px, self.cell_px)

    def col_positions(self) -> npt.NDArray[np.float32]:
        """Return where the centre of each column of voxels lies, in cells."""
        return _positions(self.width, self.width_px, self.cell_px)

    def as_plain(self) -> dict[str, int]:
        """Return the fields, for fingerprints."""
        return {
            "height": self.height, "width": self.width, "height_px": self.height_px, "width_px": self.width_px,
            "side_px": self.side_px, "cell_px": self.cell_px,
        }  # fmt: skip


def _positions(n_voxels: int, n_px: int, cell_px: int) -> npt.NDArray[np.float32]:
    return ((np.arange(n_voxels) + 0.5) * (n_px / n_voxels / cell_px)).astype(np.float32)


def plan_slice(
    shape: tuple[int, int], spacing_mm: tuple[float, float], *, patch_mm: float, patch_px: int, cell_px: int
) -> SliceGeometry:
    """Return how to show a slice so that `patch_px` pixels cover `patch_mm`, whatever its spacing.

    Args:
        shape: height and width in voxels.
        spacing_mm: (y, x).
        patch_mm: what a patch is to cover.
        patch_px: side of a patch.
        cell_px: the square's side is a multiple of this.

    Examples:
        >>> plan_slice((50, 36), (1.0, 1.0), patch_mm=3.5, patch_px=16, cell_px=16)
        SliceGeometry(height=50, width=36, height_px=229, width_px=165, side_px=240, cell_px=16)
    """
    px_per_mm = patch_px / patch_mm
    height_px, width_px = (max(1, round(n * mm * px_per_mm)) for n, mm in zip(shape, spacing_mm, strict=True))
    side_px = math.ceil(max(height_px, width_px) / cell_px) * cell_px
    return SliceGeometry(shape[0], shape[1], height_px, width_px, side_px, cell_px)


def default_patch_mm(
    extents_mm: list[float], spacings_mm: list[float], *, patch_px: int, voxels_per_patch: float, max_px: int
) -> float:
    """Return what a patch covers by default: so many voxels, or as much as the largest slice needs to fit.

    One value for a whole dataset: all of its slices are seen at one scale.

    Args:
        extents_mm: the longer side of each case's slices.
        spacings_mm: in-plane spacing of each case.
        patch_px: side of a patch.
        voxels_per_patch: wanted, of median spacing.
        max_px: the largest side shown to the encoder.

    Examples:
        >>> default_patch_mm([50.0, 59.0], [1.0, 1.0], patch_px=16, voxels_per_patch=3.5, max_px=448)
        3.5
        >>> default_patch_mm([400.0], [0.78125], patch_px=16, voxels_per_patch=3.5, max_px=448)
        14.2858
    """
    wanted = voxels_per_patch * float(np.median(spacings_mm))
    needed = max(extents_mm) * patch_px / max_px
    return round(max(wanted, math.ceil(needed * 1e4) / 1e4), 4)
