"""The global grid and the geometry of tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import ConfigError, SlideError
from wsi_dino.pathology.global_grid import plan_global_grid
from wsi_dino.pathology.tiling_spec import TilingSpec, plan_geometry
from wsi_dino.pathology.tissue_mask import AreaTable

sides = st.integers(1, 60)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), sides, sides, st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.booleans())
def test_equals_counting_pixels_tile_by_tile(
    seed: int, width: int, height: int, tile: int, stride: int, least: float, padding: bool
) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) > 0.5).astype(np.uint8)
    xy, share = plan_global_grid(
        (width, height), (tile, tile), (stride, stride), AreaTable(mask, (1.0, 1.0)), min_tissue=least, padding=padding
    )
    expected = []
    for y in range(0, height, stride):
        for x in range(0, width, stride):
            inside = x + tile <= width and y + tile <= height
            part = np.float32(mask[y : y + tile, x : x + tile].sum() / tile**2)
            if (inside or padding) and part > 0 and part >= least:
                expected.append((x, y, part))
    assert [tuple(row) for row in xy.tolist()] == [(x, y) for x, y, _ in expected]
    assert np.allclose(share, [part for _, _, part in expected])


def test_tiles_are_ordered_by_row_and_unique() -> None:
    xy, _ = plan_global_grid((1000, 800), (100, 100), (50, 50), AreaTable(np.ones((8, 10)), (100, 100)), min_tissue=0.5)
    assert xy.tolist() == sorted(xy.tolist(), key=lambda pair: (pair[1], pair[0]))
    assert len({tuple(pair) for pair in xy.tolist()}) == len(xy) == 19 * 15


def test_a_slide_smaller_than_a_tile_has_none() -> None:
    xy, _ = plan_global_grid((90, 90), (100, 100), (100, 100), AreaTable(np.ones((9, 9)), (10, 10)), min_tissue=0.0)
    assert xy.shape == (0, 2)


def test_a_downsample_of_3_9999_is_rounded_not_cut() -> None:
    geometry = plan_geometry("s", [(1.0, 1.0), (3.9999, 3.9998)], TilingSpec(mpp=None, level=1), None)
    assert geometry.tile_wh_level0 == geometry.stride_xy_level0 == (896, 896)
    clam = plan_geometry("s", [(1.0, 1.0), (3.9999, 3.9998)], TilingSpec(mpp=None, level=1, compat="clam"), None)
    assert clam.stride_xy_level0 == (672, 672)


@pytest.mark.parametrize(
    ("asked", "mpp_xy", "level", "footprint", "read"),
    [
        (0.5, (0.25, 0.25), 0, (448, 448), (448, 448)),
        (1.0, (0.25, 0.25), 1, (896, 896), (224, 224)),
        (2.0, (0.25, 0.25), 1, (1792, 1792), (448, 448)),
        (1.0, (0.2527, 0.2527), 0, (886, 886), (886, 886)),
        (1.0, (0.25, 0.2505), 1, (896, 894), (224, 224)),
        (0.5, (0.25, 0.5), 0, (448, 224), (448, 224)),
        (4.0, (0.25, 0.25), 2, (3584, 3584), (224, 224)),
    ],
)
def test_an_mpp_reads_the_nearest_finer_level(
    asked: float, mpp_xy: tuple[float, float], level: int, footprint: tuple[int, int], read: tuple[int, int]
) -> None:
    geometry = plan_geometry("s", [(1.0, 1.0), (4.0, 4.0), (16.0, 16.0)], TilingSpec(mpp=asked), mpp_xy)
    assert (geometry.level, geometry.tile_wh_level0, geometry.read_wh) == (level, footprint, read)
    assert geometry.mpp_found_xy == pytest.approx((asked, asked), rel=0.003)


def test_detail_is_not_invented() -> None:
    with pytest.raises(SlideError, match="detail is not invented"):
        plan_geometry("s", [(1.0, 1.0)], TilingSpec(mpp=0.25), (0.5, 0.5))
    assert plan_geometry("s", [(1.0, 1.0)], TilingSpec(mpp=0.5), (0.55, 0.55)).read_wh == (204, 204)


def test_native_and_levels_need_no_mpp_and_an_asked_one_does() -> None:
    native = plan_geometry("s", [(1.0, 1.0)], TilingSpec(mpp="native", tile_px=100, stride_px=50), None)
    assert (native.tile_wh_level0, native.stride_xy_level0, native.mpp_found_xy) == ((100, 100), (50, 50), None)
    with pytest.raises(SlideError, match="needs the slide's own"):
        plan_geometry("s", [(1.0, 1.0)], TilingSpec(mpp=0.5), None)
    with pytest.raises(SlideError, match="--level 3"):
        plan_geometry("s", [(1.0, 1.0)], TilingSpec(mpp=None, level=3), None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mpp": 0.5, "level": 1},
        {"mpp": None},
        {"mpp": -1.0},
        {"tile_px": 0},
        {"min_tissue": 1.5},
        {"mpp": 0.5, "compat": "clam"},
        {"tile": 224},
        {"stride_px": 0},
    ],
)
def test_wrong_requests_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        TilingSpec.checked(**wrong)
