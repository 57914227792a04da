"""Plain pictures as slides of one level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_dino.errors import SlideError
from wsi_dino.pathology import image_slide
from wsi_dino.pathology.slide import open_slide


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2100, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_pictures_are_read_as_stored(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"S.{suffix}"
    Image.fromarray(pixels).save(path)
    with open_slide(path) as slide:
        assert (slide.backend, slide.level_dimensions, slide.level_downsamples) == (
            "image",
            ((90, 2100),),
            ((1.0, 1.0),),
        )
        np.testing.assert_array_equal(slide.read_level_rgb_raw(0), pixels)
        np.testing.assert_array_equal(slide.read_region((80, 2090), 0, (10, 10)), pixels[2090:2100, 80:90])
        edge = slide.read_region((85, -5), 0, (10, 10))
    np.testing.assert_array_equal(edge[5:, :5], pixels[:5, 85:])
    assert (edge[:5] == 255).all()
    assert (edge[:, 5:] == 255).all()


def _grey16(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values.astype(np.uint16) * 257).save(path)


def _palette(values: np.ndarray, path: Path) -> None:
    Image.fromarray(np.repeat(values[..., None], 3, axis=2)).convert("P", palette=Image.Palette.ADAPTIVE).save(path)


@pytest.mark.parametrize("kind", ["L", "16 bit", "P", "1"])
def test_grey_of_every_depth_becomes_rgb(tmp_path: Path, kind: str) -> None:
    values = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((8, 8), np.uint8))
    path = tmp_path / "S.png"
    if kind == "16 bit":
        _grey16(values, path)
    elif kind == "P":
        _palette(values, path)
    else:
        Image.fromarray(values).convert(kind).save(path)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level_rgb_raw(0), np.repeat(values[..., None], 3, axis=2))


def test_sixteen_bit_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "S.png")
    tifffile.imwrite(tmp_path / "T.tif", np.stack([values] * 3, axis=2), photometric="rgb")
    for name in ("S.png", "T.tif"):
        with open_slide(tmp_path / name) as slide:
            np.testing.assert_array_equal(slide.read_level_rgb_raw(0)[..., 1].ravel(), np.arange(256))


def test_transparency_is_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "S.png")
    with open_slide(tmp_path / "S.png") as slide:
        raw = slide.read_level_rgb_raw(0)
    assert (raw[:4] == (10, 20, 30)).all()
    assert (raw[4:] == 255).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK").save(tmp_path / "S.tif")
    with open_slide(tmp_path / "S.tif") as slide:
        assert np.abs(slide.read_level_rgb_raw(0).astype(int) - (200, 30, 90)).max() <= 1


def test_exif_orientation_is_ignored_so_that_coordinates_mean_stored_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "S.jpg", exif=exif)
    with open_slide(tmp_path / "S.jpg") as slide:
        assert slide.level_dimensions == ((40, 20),)
        assert slide.read_level_rgb_raw(0).shape == (20, 40, 3)


@pytest.mark.parametrize(("dpi", "mpp"), [(72, None), (300, None), (2400, None), (50800, 0.5)])
def test_a_print_resolution_is_no_mpp(tmp_path: Path, dpi: int, mpp: float | None) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "S.jpg", dpi=(dpi, dpi))
    Image.new("RGB", (40, 20)).save(tmp_path / "T.tif", dpi=(dpi, dpi))
    for name in ("S.jpg", "T.tif"):
        with open_slide(tmp_path / name) as slide:
            assert slide.file_mpp == (None if mpp is None else pytest.approx((mpp, mpp)))


def test_it_is_decoded_once(tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels).save(tmp_path / "S.png")
    decode, calls = image_slide._decode, []
    monkeypatch.setattr(image_slide, "_decode", lambda path: calls.append(path) or decode(path))
    with open_slide(tmp_path / "S.png") as slide:
        assert calls == []
        slide.read_overview(50)
        slide.read_region((0, 0), 0, (10, 10))
        slide.read_level_rgb_raw(0)
    assert len(calls) == 1


def test_larger_than_pillows_guard_is_read_and_the_bound_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "S.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(image_slide, "_BAND_AREA_PX", 64)
    with open_slide(tmp_path / "S.png") as slide:
        assert slide.read_level_rgb_raw(0).shape == (64, 64, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(image_slide, "MAX_IMAGE_PX", 4000)
    with pytest.raises(SlideError, match="64x64 px is more than"):
        open_slide(tmp_path / "S.png")


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_truncated_pictures_are_slide_errors(tmp_path: Path, pixels: np.ndarray, suffix: str, kept: float) -> None:
    path = tmp_path / f"S.{suffix}"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])

    def read_all() -> None:
        with open_slide(path) as slide:
            slide.read_level_rgb_raw(0)

    with pytest.raises(SlideError, match=f"S.{suffix}"):
        read_all()


def test_the_shared_biopsy_is_one_level_without_mpp(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "histoprep_slide_with_ink.jpeg") as slide:
        assert slide.level_dimensions == ((5600, 1000),)
        assert slide.file_mpp is None
        overview, downsample = slide.read_overview(1400)
    assert overview.shape == (250, 1400, 3)
    assert downsample == (4.0, 4.0)
