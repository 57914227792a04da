"""Drawn slides: what OpenSlide finds in them, and that their truth is true."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import openslide
import pytest

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.synthetic import REDUCED_BY, TissuePainter, draw_tissue, write_pyramid


def _as_floats(handle: openslide.OpenSlide) -> list[float]:
    return [float(value) for value in handle.level_downsamples]


@pytest.mark.parametrize(("sizes", "wh"), [("ceil", (1000, 500)), ("floor", (999, 499))])
def test_odd_sizes_give_downsamples_beside_four(tmp_path: Path, sizes: str, wh: tuple[int, int]) -> None:
    image = np.zeros((1999, 3999, 3), np.uint8)
    write_pyramid(tmp_path / "S.tif", image, sizes=sizes)  # type: ignore[arg-type]
    with openslide.OpenSlide(tmp_path / "S.tif") as handle:
        assert handle.level_dimensions[1] == wh
        assert _as_floats(handle)[1] == pytest.approx((3999 / wh[0] + 1999 / wh[1]) / 2)
        assert _as_floats(handle)[1] != 4


@pytest.mark.parametrize(("flavour", "vendor"), [("tiff", "generic-tiff"), ("svs", "aperio")])
@pytest.mark.parametrize("mpp", [0.2525, None])
def test_openslide_knows_vendor_and_resolution(tmp_path: Path, flavour: str, vendor: str, mpp: float | None) -> None:
    write_pyramid(tmp_path / "S", np.zeros((600, 800, 3), np.uint8), flavour=flavour, mpp=mpp)  # type: ignore[arg-type]
    with openslide.OpenSlide(tmp_path / "S") as handle:
        assert handle.properties["openslide.vendor"] == vendor
        found = handle.properties.get("openslide.mpp-x")
    assert (found is None) if mpp is None else (float(found or 0) == pytest.approx(mpp, rel=1e-3))


def test_a_painter_writes_the_same_file_as_its_picture(tmp_path: Path) -> None:
    painter = TissuePainter(np.random.default_rng(5), (1300, 900), tumour=True)
    write_pyramid(tmp_path / "a.tif", painter, wh=(1300, 900))
    write_pyramid(tmp_path / "b.tif", painter(0, 0, 1300, 900))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_writing_a_large_slide_takes_little_memory(tmp_path: Path) -> None:
    flat = np.full((256, 256, 3), 200, np.uint8)
    tracemalloc.start()
    write_pyramid(tmp_path / "S.tif", lambda x, y, w, h: flat[:h, :w], wh=(16_384, 8192))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20  # the whole would be 402 MB


@pytest.mark.parametrize("downsamples", [(2, 4), (1, 3, 4), (1, 1), (1, 5), (1, 0), ()])
def test_levels_that_cannot_be_written_are_refused(tmp_path: Path, downsamples: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="downsamples"):
        write_pyramid(tmp_path / "S.tif", np.zeros((64, 64, 3), np.uint8), downsamples=downsamples)
    assert list(tmp_path.iterdir()) == []


def test_a_seed_gives_one_picture() -> None:
    first, truth = draw_tissue(np.random.default_rng(7), (900, 700), tumour=True)
    second, same_truth = draw_tissue(np.random.default_rng(7), (900, 700), tumour=True)
    other, _ = draw_tissue(np.random.default_rng(8), (900, 700), tumour=True)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(truth, same_truth)
    assert (first != other).any()


def test_regions_are_parts_of_the_whole() -> None:
    painter = TissuePainter(np.random.default_rng(1), (2000, 1500), tumour=True, pen=True)
    whole = painter(0, 0, 2000, 1500).astype(int)
    for x, y, w, h in ((0, 0, 64, 64), (777, 333, 600, 555), (1900, 1400, 100, 100)):
        assert np.abs(painter(x, y, w, h) - whole[y : y + h, x : x + w]).max() <= 12  # rounding of soft edges


def _enlarged(mask: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
    return np.kron(mask, np.ones((REDUCED_BY, REDUCED_BY), bool))[: wh[1], : wh[0]]


def _core(mask: np.ndarray) -> np.ndarray:
    """Return the px of `mask` whose neighbours up to two away are in it too."""
    padded = np.pad(mask, 2)
    shifted = [np.roll(padded, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)]
    return np.logical_and.reduce(shifted)[2:-2, 2:-2]


@pytest.mark.parametrize("seed", range(4))
def test_the_truth_is_true(seed: int) -> None:
    wh = (2400, 1800)
    painter = TissuePainter(np.random.default_rng(seed), wh, tumour=True, white_background=True)
    image = painter(0, 0, *wh)
    outside = _enlarged(_core(~painter.tissue_mask), wh)
    tumour = _enlarged(_core(painter.tumour_mask), wh)
    benign = _enlarged(_core(painter.tissue_mask & ~painter.tumour_mask), wh)
    assert (image[outside] == 255).all()
    assert 0.03 < painter.tumour_mask.sum() / painter.tissue_mask.sum() < 0.6
    assert image[tumour].mean() < image[benign].mean() - 25
    assert (image[benign].max(axis=1) - image[benign].min(axis=1)).mean() > 30


def test_without_tumour_the_mask_is_empty_and_pen_is_where_it_is_said_to_be() -> None:
    painter = TissuePainter(np.random.default_rng(2), (1600, 1200), tumour=False, pen=True)
    image = painter(0, 0, 1600, 1200).astype(int)
    ink = _enlarged(_core(painter.pen_mask), (1600, 1200))
    assert not painter.tumour_mask.any()
    assert painter.pen_mask.any()
    assert (image[ink][:, 2] > image[ink][:, 0] + 50).all()
