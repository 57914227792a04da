"""The thumbnail shows contours and tiles where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from wsi_dino.pathology.discovery import SlideSource
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.slide_tiler import TileRequest, tile_slide
from wsi_dino.pathology.synthetic import write_pyramid
from wsi_dino.pathology.thumbnail import read_for_thumbnail, write_thumbnail
from wsi_dino.pathology.tiling_spec import TilingSpec
from wsi_dino.pathology.tissue import Overview
from wsi_dino.pathology.tissue_spec import TissueSpec

_GREEN, _DARK = np.array((0, 150, 60)), np.array((20, 20, 20))


def _near(rgb: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.abs(rgb.astype(int) - colour).max(axis=2) < 8


@pytest.mark.parametrize("side", [4096, 9000])
def test_contours_and_tiles_lie_on_the_tissue_they_belong_to(tmp_path: Path, side: int) -> None:
    rgb = np.full((side, side + 512, 3), 243, np.uint8)
    low, high = side // 4, side // 2
    rgb[low:high, low : high + 512] = (210, 120, 170)
    path = tmp_path / "s.tif"
    write_pyramid(path, rgb, downsamples=(1, 4, 16), compression="deflate")
    tiled = tile_slide(SlideSource("s", path), TileRequest(TissueSpec(), TilingSpec(mpp="native", tile_px=512)), "")
    scale = tiled.thumbnail.shape[1] / (side + 512)
    assert max(tiled.thumbnail.shape) <= 1600
    rows, columns = np.nonzero(_near(tiled.thumbnail, _GREEN))
    margin = 16 * scale + 3
    for found, expected in (
        (rows.min(), low), (rows.max(), high), (columns.min(), low), (columns.max(), high + 512),
    ):  # fmt: skip
        assert abs(found - expected * scale) <= margin
    x, y = (tiled.grid.xy[len(tiled.grid) // 2] * scale).astype(int)
    assert _near(tiled.thumbnail, _DARK)[y - 1 : y + 2, x + 5 : x + int(500 * scale)].any(axis=0).mean() > 0.9


def test_a_coarse_overview_is_replaced_by_a_finer_level_when_that_is_cheap(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    write_pyramid(path, np.full((8192, 8192, 3), 240, np.uint8), downsamples=(1, 8, 64))
    with open_slide(path) as slide:
        coarse = Overview(slide.read_level((0, 0), 2, (128, 128)), (64.0, 64.0))
        assert read_for_thumbnail(slide, coarse).wh == (1024, 1024)
        fine = Overview(np.zeros((1000, 1000, 3), np.uint8), (8.192, 8.192))
        assert read_for_thumbnail(slide, fine) is fine


def test_equal_pictures_are_equal_files(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    write_thumbnail(tmp_path / "a.jpg", rgb)
    write_thumbnail(tmp_path / "b.jpg", rgb)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (50, 60, 3)
