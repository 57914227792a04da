"""Tiles as an encoder gets them, against pixels that are known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from wsi_dino.errors import TileGridError
from wsi_dino.pathology.slide import Slide, area_downsample, open_slide
from wsi_dino.pathology.synthetic import write_pyramid
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.pathology.tile_reader import TileReader, resample_tile


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1199, 1599, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "S1.tif"
    write_pyramid(path, pixels, compression="deflate", downsamples=(1, 4))
    return path


def _grid(slide: Slide, xy: list[tuple[int, int]], level: int, read_px: int, tile_px: int) -> TileGrid:
    down_x, down_y = slide.level_downsamples[level]
    return TileGrid(
        slide_id=slide.slide_id,
        slide_fingerprint="",
        xy=np.array(xy, np.int64).reshape(-1, 2),
        tissue_fraction=np.ones(len(xy), np.float32),
        tile_px=tile_px,
        tile_wh_level0=(round(read_px * down_x), round(read_px * down_y)),
        stride_xy_level0=(round(read_px * down_x), round(read_px * down_y)),
        level=level,
        read_wh=(read_px, read_px),
        level_downsample_xy=(down_x, down_y),
        slide_wh_level0=slide.level_dimensions[0],
        mpp_xy=None,
        mpp_source="unknown",
        mpp_asked="native",
        mpp_found_xy=None,
    )


def test_unresampled_tiles_are_the_pixels_in_the_grids_order(path: Path, pixels: np.ndarray) -> None:
    corners = [(700, 100), (0, 0), (333, 901)]
    with open_slide(path) as slide:
        tiles = list(TileReader(slide, _grid(slide, corners, 0, 64, 64)))
    assert len(tiles) == 3
    for (x, y), tile in zip(corners, tiles, strict=True):
        np.testing.assert_array_equal(tile, pixels[y : y + 64, x : x + 64])


def test_half_size_tiles_are_two_by_two_means(path: Path, pixels: np.ndarray) -> None:
    with open_slide(path) as slide:
        tile = TileReader(slide, _grid(slide, [(100, 200)], 0, 128, 64)).read(0)
    exact = pixels[200:328, 100:228].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert tile.dtype == np.uint8
    assert np.abs(tile - exact).max() <= 0.5


@pytest.mark.parametrize("backend", ["openslide", "tiled-tiff"])
def test_a_coarse_level_of_downsample_3_9975_is_read_where_the_tile_lies(
    path: Path, pixels: np.ndarray, backend: str
) -> None:
    level = area_downsample(pixels, 4)
    with open_slide(path, backend=backend) as slide:
        assert slide.level_downsamples[1] == (1599 / 400, 1199 / 300)
        tile = TileReader(slide, _grid(slide, [(1200, 800)], 1, 32, 32)).read(0).astype(int)
    expected = level[200:232, 300:332].astype(int)
    shifted = level[200:232, 301:333].astype(int)
    assert np.abs(tile - expected).mean() < 0.25 * np.abs(tile - shifted).mean()
    if backend == "tiled-tiff":
        np.testing.assert_array_equal(tile, expected)


def test_beyond_the_slide_a_tile_is_white(path: Path, pixels: np.ndarray) -> None:
    with open_slide(path) as slide:
        tile = TileReader(slide, _grid(slide, [(1590, 1190)], 0, 64, 64)).read(0)
    np.testing.assert_array_equal(tile[:9, :9], pixels[1190:, 1590:])
    assert (tile[9:] == 255).all()
    assert (tile[:, 9:] == 255).all()


def test_threads_get_what_one_gets(path: Path) -> None:
    corners = [(x, y) for y in range(0, 1100, 90) for x in range(0, 1500, 90)]
    with open_slide(path) as slide:
        reader = TileReader(slide, _grid(slide, corners, 0, 100, 50))
        alone = list(reader)
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(reader.read, range(len(reader))))
    np.testing.assert_array_equal(np.stack(alone), np.stack(together))


def test_a_grid_of_another_slide_is_refused(path: Path, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "other.tif", np.zeros((100, 100, 3), np.uint8), downsamples=(1,))
    with open_slide(path) as slide:
        grid = _grid(slide, [(0, 0)], 0, 64, 64)
    with open_slide(tmp_path / "other.tif") as other, pytest.raises(TileGridError, match=r"1599.*1199"):
        TileReader(other, grid)


def test_a_grid_without_tiles_reads_none(path: Path) -> None:
    with open_slide(path) as slide:
        assert list(TileReader(slide, _grid(slide, [], 0, 64, 64))) == []


def test_enlarging_keeps_a_flat_colour_and_the_asked_size() -> None:
    tile = resample_tile(np.full((100, 90, 3), 77, np.uint8), 224)
    assert tile.shape == (224, 224, 3)
    assert (tile == 77).all()
