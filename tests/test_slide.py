"""Every reader gives the same picture of a phantom whose pixels are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from wsi_dino.errors import ConfigError, SlideError
from wsi_dino.pathology.slide import Slide, area_downsample, composite_on_white, open_slide, plausible_mpp
from wsi_dino.pathology.synthetic import write_pyramid

_BACKENDS = ("openslide", "tiled-tiff")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1003, 1399, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pyramid(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "S1.tif"
    write_pyramid(path, pixels, mpp=0.25, compression="deflate")
    return path


@pytest.mark.parametrize("backend", _BACKENDS)
def test_geometry_is_per_axis(pyramid: Path, backend: str) -> None:
    with open_slide(pyramid, backend=backend) as slide:
        assert (slide.slide_id, slide.backend, slide.path) == ("S1", backend, pyramid)
        assert slide.level_dimensions == ((1399, 1003), (350, 251), (88, 63))
        assert slide.level_downsamples[1] == (1399 / 350, 1003 / 251)
        assert slide.file_mpp == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("xy", [(0, 0), (250, 250), (-30, -20), (1390, 990), (1399, 0), (5000, 5000), (-500, 3)])
def test_regions_are_the_pixels_and_white_outside(
    pyramid: Path, pixels: np.ndarray, backend: str, xy: tuple[int, int]
) -> None:
    framed = np.pad(pixels, ((600, 6000), (600, 6000), (0, 0)), constant_values=255)
    with open_slide(pyramid, backend=backend) as slide:
        region = slide.read_region(xy, 0, (60, 40))
    assert region.dtype == np.uint8
    np.testing.assert_array_equal(region, framed[xy[1] + 600 :, xy[0] + 600 :][:40, :60])


@pytest.mark.parametrize("backend", _BACKENDS)
def test_whole_levels_are_the_box_averages_that_were_written(pyramid: Path, pixels: np.ndarray, backend: str) -> None:
    with open_slide(pyramid, backend=backend) as slide:
        np.testing.assert_array_equal(slide.read_level_rgb_raw(1), area_downsample(pixels, 4))
        np.testing.assert_array_equal(slide.read_level((0, 0), 1, (350, 251)), area_downsample(pixels, 4))


def test_a_coarse_region_lies_on_the_grid_of_its_level(pyramid: Path, pixels: np.ndarray) -> None:
    level = area_downsample(pixels, 4)
    with open_slide(pyramid, backend="tiled-tiff") as slide:
        region = slide.read_region((1000, 801), 1, (50, 30))
    x, y = round(1000 / (1399 / 350)), round(801 / (1003 / 251))
    np.testing.assert_array_equal(region, level[y : y + 30, x : x + 50])


@pytest.mark.parametrize("backend", _BACKENDS)
def test_a_missing_level_is_named(pyramid: Path, backend: str) -> None:
    with open_slide(pyramid, backend=backend) as slide, pytest.raises(SlideError, match="no level 3"):
        slide.read_level((0, 0), 3, (1, 1))


@pytest.mark.parametrize("backend", _BACKENDS)
def test_an_overview_without_small_level_is_the_mean_of_whole_blocks(
    pixels: np.ndarray, tmp_path: Path, backend: str
) -> None:
    write_pyramid(tmp_path / "one.tif", pixels, downsamples=(1,), compression="none")
    with open_slide(tmp_path / "one.tif", backend=backend) as slide:
        overview, downsample = slide.read_overview(200)
    assert downsample == (7.0, 7.0)
    assert overview.shape == (144, 200, 3)
    exact = pixels[:1001, :1393].reshape(143, 7, 199, 7, 3).mean(axis=(1, 3))
    assert np.abs(overview[:143, :199] - exact).max() <= 0.51


@pytest.mark.parametrize(
    ("max_px", "downsample"), [(350, 1399 / 350), (88, 1399 / 88), (10_000, 1.0), (175, 2 * 1399 / 350)]
)
def test_an_overview_takes_the_coarsest_level_that_is_large_enough(
    pyramid: Path, max_px: int, downsample: float
) -> None:
    with open_slide(pyramid) as slide:
        overview, (down_x, _) = slide.read_overview(max_px)
    assert down_x == pytest.approx(downsample)
    assert max(overview.shape) <= max_px


def test_overview_blocks_leave_no_seam(pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pyramid(tmp_path / "one.tif", pixels, downsamples=(1,), compression="none")
    with open_slide(tmp_path / "one.tif") as slide:
        whole, _ = slide.read_overview(300)
        monkeypatch.setattr("wsi_dino.pathology.slide._OVERVIEW_BLOCK_PX", 64)
        np.testing.assert_array_equal(slide.read_overview(300)[0], whole)


def test_transparent_background_is_white(tmp_path: Path) -> None:
    rgba = np.zeros((512, 512, 4), np.uint8)
    rgba[100:200, 100:300] = (200, 40, 100, 255)
    rgba[300:400, 100:300] = (200, 40, 100, 128)
    write_pyramid(tmp_path / "alpha.tif", rgba, downsamples=(1,), compression="deflate")
    with open_slide(tmp_path / "alpha.tif") as slide:
        assert slide.backend == "openslide"
        region = slide.read_level((0, 0), 0, (512, 512))
        raw = slide.read_level_rgb_raw(0)
    assert (region[:100] == 255).all()
    assert (region[100:200, 100:300] == (200, 40, 100)).all()
    assert np.abs(region[350, 200].astype(int) - (227, 147, 177)).max() <= 1
    assert (raw[:100] == 0).all()


@pytest.mark.parametrize("mpp", [None, 352.8, 84.7])
def test_no_resolution_or_a_printers_one_is_no_mpp(tmp_path: Path, mpp: float | None) -> None:
    write_pyramid(tmp_path / "S.tif", np.zeros((300, 300, 3), np.uint8), mpp=mpp)
    with open_slide(tmp_path / "S.tif") as slide:
        assert slide.file_mpp is None
        assert ("print resolution" if mpp else "neither") in slide.file_mpp_source


def test_plausible_mpp_needs_both_axes() -> None:
    assert plausible_mpp((0.5, 100.0), "x")[0] is None


def test_compositing_equals_the_formula() -> None:
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (50, 60, 4), dtype=np.uint8)
    alpha = rgba[..., 3:] / 255
    exact = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(composite_on_white(rgba) - exact).max() <= 0.501


_BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("S.svs", lambda path: None, "no such file"),
    "empty": ("S.svs", lambda path: path.write_bytes(b""), "empty"),
    "garbage slide": ("S.svs", lambda path: path.write_bytes(b"hello" * 100), "not a slide"),
    "garbage image": ("S.jpg", lambda path: path.write_bytes(b"hello" * 100), "not an image"),
    "folder": ("S", lambda path: path.mkdir(), "DICOM"),
}


@pytest.mark.parametrize("case", _BAD)
@pytest.mark.parametrize("backend", ["auto", "openslide", "image"])
def test_what_is_no_slide_is_a_slide_error(tmp_path: Path, case: str, backend: str) -> None:
    name, make, message = _BAD[case]
    make(tmp_path / name)
    with pytest.raises(SlideError, match=message if backend == "auto" else name):
        open_slide(tmp_path / name, backend=backend).read_level_rgb_raw(0)


def test_no_permission_is_a_slide_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "S.svs"
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a test run by root would be let in
    with pytest.raises(SlideError, match="no permission"):
        open_slide(path)


def test_unknown_backend_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'openslide'"):
        open_slide(tmp_path / "x.svs", backend="open-slide")


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-Small-Region.derived-pyramid.tif"])
def test_a_truncated_slide_never_passes_for_a_picture(
    shared_data: Path, tmp_path: Path, name: str, kept: float
) -> None:
    data = (shared_data / "slides" / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(SlideError, match=name):
        open_slide(path).read_level_rgb_raw(0)


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("compression", ["none", "deflate", "jpeg"])
def test_a_file_cut_behind_an_intact_header_is_a_slide_error(
    pixels: np.ndarray, tmp_path: Path, backend: str, compression: str
) -> None:
    path = tmp_path / "cut.tif"
    write_pyramid(path, pixels, downsamples=(1,), compression=compression)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])

    def read_all() -> None:
        with open_slide(path, backend=backend) as slide:
            slide.read_level_rgb_raw(0)

    with pytest.raises(SlideError, match=r"cut\.tif"):
        read_all()


@pytest.mark.parametrize("backend", _BACKENDS)
def test_a_lost_tile_is_a_slide_error_and_the_others_are_read(pixels: np.ndarray, tmp_path: Path, backend: str) -> None:
    path = tmp_path / "hole.tif"
    write_pyramid(path, pixels, downsamples=(1,))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        offset, count = page.dataoffsets[7], page.databytecounts[7]
    damaged = bytearray(path.read_bytes())
    damaged[offset : offset + count] = bytes(count)
    path.write_bytes(damaged)
    with open_slide(path, backend=backend) as slide:
        assert slide.read_level((0, 0), 0, (200, 200)).shape == (200, 200, 3)
        with pytest.raises(SlideError, match=r"hole\.tif"):
            slide.read_level((256, 256), 0, (256, 256))


def test_reads_after_closing_are_refused(pyramid: Path) -> None:
    slide: Slide = open_slide(pyramid)
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="closed"):
        slide.read_level((0, 0), 0, (10, 10))
