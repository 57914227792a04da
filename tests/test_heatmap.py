"""Heatmaps: each tile's colour lies exactly over the tissue that the tile was cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import rankdata

from wsi_dino.errors import SlideError
from wsi_dino.pathology.heatmap import (
    heatmap_picture,
    overlay_of,
    paint_tiles,
    read_tiles,
    with_legend,
    write_heatmap,
)
from wsi_dino.pathology.tile_values import TileValues, percentile_ranks

TILE_PX = 64


def _values(values: np.ndarray, xy: np.ndarray, side_px: int = TILE_PX) -> TileValues:
    return TileValues("board", "attention", values, xy, (side_px, side_px))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40))
def test_ranks_are_those_of_scipy(values: list[int]) -> None:
    expected = (rankdata(values) - 1) / (len(values) - 1)
    np.testing.assert_allclose(percentile_ranks(np.array(values, float)), expected)


def test_one_tile_has_the_middle_rank() -> None:
    assert percentile_ranks(np.array([3.0])).tolist() == [0.5]
    assert percentile_ranks(np.array([])).tolist() == []


def _board(columns: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a slide of dark and bright squares, the squares' corners and whether each is dark."""
    rng = np.random.default_rng(0)
    dark = rng.random((rows, columns)) < 0.4
    pixels = np.where(np.kron(dark, np.ones((TILE_PX, TILE_PX), bool))[..., None], 40, 220)
    y, x = np.indices(dark.shape).reshape(2, -1) * TILE_PX
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8), np.stack([x, y], 1), dark.ravel()


@pytest.mark.parametrize("downsample_xy", [(1.0, 1.0), (4.0, 4.0), (3.9999, 4.0003), (2.0, 8.0), (7.3, 7.3)])
def test_high_attention_covers_exactly_the_dark_squares(downsample_xy: tuple[float, float]) -> None:
    pixels, xy, dark = _board(20, 12)
    height, width = (round(n / d) for n, d in zip(pixels.shape[:2], downsample_xy[::-1], strict=True))
    overlay = overlay_of(_values(dark.astype(float), xy), (width, height), downsample_xy)
    rows = np.clip(((np.arange(height) + 0.5) * downsample_xy[1]).astype(int), 0, pixels.shape[0] - 1)
    columns = np.clip(((np.arange(width) + 0.5) * downsample_xy[0]).astype(int), 0, pixels.shape[1] - 1)
    is_dark = pixels[np.ix_(rows, columns)][..., 0] < 128
    is_red = overlay[..., 0].astype(int) > overlay[..., 2].astype(int)
    assert overlay[..., 3].min() > 0
    whole_px = TILE_PX % round(downsample_xy[0], 2) == 0  # squares that end within a px are rounded to one
    assert (is_dark == is_red).mean() == pytest.approx(1.0, abs=0.0 if whole_px else 0.05)


def test_uncovered_slide_stays_visible() -> None:
    overlay = overlay_of(_values(np.array([1.0, 2.0]), np.array([[0, 0], [100, 100]]), 50), (30, 20), (10.0, 10.0))
    covered = np.zeros((20, 30), bool)
    covered[0:5, 0:5] = covered[10:15, 10:15] = True
    np.testing.assert_array_equal(overlay[..., 3] > 0, covered)


def test_overlapping_tiles_share_their_mean() -> None:
    values, covered = paint_tiles(np.array([0.0, 1.0]), np.array([[0, 0], [5, 0]]), (10, 10), (15, 10), (1.0, 1.0))
    assert values[0, :5].tolist() == [0.0] * 5
    assert values[0, 5:10].tolist() == [0.5] * 5
    assert values[0, 10:].tolist() == [1.0] * 5
    assert covered.all()


def test_tile_beyond_the_edge_is_cut_not_wrapped() -> None:
    values, covered = paint_tiles(
        np.array([1.0, 1.0]), np.array([[-5, -5], [95, 95]]), (10, 10), (100, 100), (1.0, 1.0)
    )
    assert covered.sum() == 50
    assert values[0, 0] == values[99, 99] == 1.0


@pytest.mark.parametrize("max_px", [1280, 640, 333])
def test_picture_of_a_real_file_lines_up(tmp_path: Path, max_px: int) -> None:
    pixels, xy, dark = _board(20, 12)
    path = tmp_path / "board.png"
    Image.fromarray(pixels).save(path)
    picture = heatmap_picture(path, _values(dark.astype(float), xy), max_px).astype(int)
    assert max(picture.shape) <= max_px
    scale = pixels.shape[1] / picture.shape[1]
    for (x, y), is_dark in zip(xy, dark, strict=True):
        red, _, blue = picture[int((y + 32) / scale), int((x + 32) / scale)]
        assert (red > blue) == is_dark


def test_tiles_are_cut_from_their_place(tmp_path: Path) -> None:
    pixels, xy, dark = _board(6, 4)
    path = tmp_path / "board.png"
    Image.fromarray(pixels).save(path)
    tiles = read_tiles(path, xy, (TILE_PX, TILE_PX), out_px=32)
    assert [tile.shape for tile in tiles] == [(32, 32, 3)] * len(xy)
    assert [bool(tile.max() < 128) for tile in tiles] == dark.tolist()


def test_heatmap_is_written_with_its_legend(tmp_path: Path) -> None:
    pixels, xy, dark = _board(20, 12)
    Image.fromarray(pixels).save(tmp_path / "board.png")
    out = tmp_path / "heatmap.png"
    write_heatmap(out, tmp_path / "board.png", _values(dark.astype(float), xy), title="board")
    with Image.open(out) as image:
        assert image.size == (1280, 768 + 56)
    first = out.read_bytes()
    write_heatmap(out, tmp_path / "board.png", _values(dark.astype(float), xy), title="board")
    assert out.read_bytes() == first


def test_missing_slide_is_named_and_nothing_written(tmp_path: Path) -> None:
    gone = tmp_path / "gone.svs"
    with pytest.raises(SlideError, match=r"gone\.svs"):
        write_heatmap(tmp_path / "h.png", gone, _values(np.ones(1), np.zeros((1, 2), int)), title="t")
    assert not (tmp_path / "h.png").exists()


@pytest.mark.parametrize("title", ["plain", "Schnitt – Größe", "胃生検", "x" * 500, ""])
def test_any_title_is_drawn_within_the_width(title: str) -> None:
    picture = with_legend(np.full((50, 600, 3), 7, np.uint8), title, ("0", title))
    assert picture.shape == (106, 600, 3)
    assert (picture[:50] == 7).all()
