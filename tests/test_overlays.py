"""Overlays lie over their slide: the hottest region is the drawn square, at every resolution, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from wsi_dino.errors import ConfigError, SlideError
from wsi_dino.pathology.discovery import SlideSource
from wsi_dino.pathology.heatmap import heatmap_picture
from wsi_dino.pathology.overlay_geojson import write_overlay_geojson
from wsi_dino.pathology.overlay_tiff import plan_overlay, write_overlay_tiff
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.slide_tiler import TileRequest, tile_slide
from wsi_dino.pathology.synthetic import write_pyramid
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.pathology.tile_reader import TileReader
from wsi_dino.pathology.tile_values import TileValues, colours
from wsi_dino.pathology.tiling_spec import TilingSpec
from wsi_dino.pathology.tissue_spec import TissueSpec

TILE_PX = 64
TISSUE, BRIGHT = (190, 60, 150), (250, 215, 60)
# asked um/px and those of the slide: factors 1.0989, 1, 2.198, 1.25, 4.396, 2.703, 8.791, 2.222
RESOLUTIONS = [
    (0.25, 0.2275), (0.25, 0.25), (0.5, 0.2275), (0.5, 0.4), (1.0, 0.2275), (1.0, 0.37), (2.0, 0.2275), (2.0, 0.9),
]  # fmt: skip


def _draw(path: Path, mpp: float, square_um: tuple[float, float, float], wh_um: tuple[float, float]) -> None:
    """Draw one piece of tissue on white, and in it a bright square (x, y, side), all in um."""
    width, height = (round(side / mpp) for side in wh_um)
    image = np.full((height, width, 3), 245, np.uint8)
    edge = round(40 / mpp)
    image[edge:-edge, edge:-edge] = TISSUE
    x, y, side = (round(value / mpp) for value in square_um)
    image[y : y + side, x : x + side] = BRIGHT
    write_pyramid(path, image, mpp=mpp, compression="none", downsamples=(1, 4), sizes="floor")


def _tile_values(path: Path, mpp_asked: float, kind: str = "attention") -> tuple[TileValues, TileGrid]:
    """Tile the slide as `wsi-dino tile` does, and take for the value of a tile how bright its pixels are as read."""
    spec = TilingSpec(mpp=mpp_asked, tile_px=TILE_PX)
    grid = tile_slide(SlideSource("phantom", path), TileRequest(TissueSpec(), spec), "abc").grid
    with open_slide(path) as slide:
        reader = TileReader(slide, grid)
        yellow = np.array([_yellow(reader.read(index)) for index in range(len(grid))])
    values = yellow if kind == "probability" else yellow + 1e-9 * np.arange(len(yellow))
    of_class = "bright" if kind == "probability" else ""
    return TileValues("phantom", kind, values, grid.xy, grid.tile_wh_level0, of_class), grid  # type: ignore[arg-type]


def _yellow(tile: np.ndarray) -> float:
    return float((tile[..., 2].astype(int) < tile[..., 1].astype(int) - 40).mean())


class _Phantom:
    """A slide of at least 11 by 9 tiles with a bright square of 3 by 3 tiles that lies across the grid."""

    def __init__(self, folder: Path, asked: float, mpp: float) -> None:
        self.tile_um = TILE_PX * asked
        self.square_um = (3.3 * self.tile_um, 2.6 * self.tile_um, 3 * self.tile_um)
        self.path, self.mpp = folder / "phantom.tif", mpp
        _draw(self.path, mpp, self.square_um, (max(11 * self.tile_um, 600), max(9 * self.tile_um, 500)))

    def check(self, hot: np.ndarray, um_per_px: float) -> None:
        """Hot px (bool) cover all tiles within the square, and none reaches a tile beyond it."""
        y, x = np.nonzero(hot)
        low = np.array([x.min(), y.min()]) * um_per_px
        high = np.array([x.max() + 1, y.max() + 1]) * um_per_px
        start, side = np.array(self.square_um[:2]), self.square_um[2]
        assert (low >= start - self.tile_um).all()
        assert (high <= start + side + self.tile_um).all()
        centre = np.array([x.mean(), y.mean()]) * um_per_px
        assert np.abs(centre - (start + side / 2)).max() <= self.tile_um
        assert hot.sum() * um_per_px**2 >= (2 * self.tile_um) ** 2 * 0.9


def _hottest(picture: np.ndarray) -> np.ndarray:
    """Tell where the colour of the end of the bar lies over the bright square."""
    expected = 0.45 * np.array(BRIGHT) + 0.55 * colours()[255].astype(float)
    return np.abs(picture[..., :3].astype(float) - expected).max(-1) < 25


@pytest.mark.parametrize(("asked", "mpp"), RESOLUTIONS)
def test_hottest_region_lies_on_the_square_at_every_resolution(tmp_path: Path, asked: float, mpp: float) -> None:
    phantom = _Phantom(tmp_path, asked, mpp)
    tiles, grid = _tile_values(phantom.path, asked, "probability")
    assert grid.tile_wh_level0[0] == pytest.approx(phantom.tile_um / mpp, abs=0.5)

    with open_slide(phantom.path) as slide:
        write_overlay_tiff(tmp_path / "overlay.tiff", slide, tiles, slide.file_mpp)
    with openslide.OpenSlide(tmp_path / "overlay.tiff") as overlay:
        um = float(overlay.properties["openslide.mpp-x"])
        whole = np.asarray(overlay.read_region((0, 0), 0, overlay.dimensions))
        phantom.check(_hottest(whole), um)
        with openslide.OpenSlide(phantom.path) as slide:
            extent = [side * float(slide.properties["openslide.mpp-x"]) for side in slide.dimensions]
        assert np.array(overlay.dimensions) * um == pytest.approx(extent, abs=um)

    picture = heatmap_picture(phantom.path, tiles, max_px=700)
    phantom.check(_hottest(picture), extent[0] / picture.shape[1])

    write_overlay_geojson(tmp_path / "overlay.geojson", tiles, {"bright": tiles.values})
    features = json.loads((tmp_path / "overlay.geojson").read_text())["features"]
    hottest = [one for one in features if one["properties"]["measurements"]["bright"] > 0.99]
    assert len(hottest) >= 4
    start, side = np.array(phantom.square_um[:2]), phantom.square_um[2]
    for feature in hottest:
        corners = np.array(feature["geometry"]["coordinates"][0]) * mpp
        assert (corners >= start - mpp).all()  # a tile that is all bright lies within the square, to a px
        assert (corners <= start + side + mpp).all()


def test_overlay_opens_as_a_tiled_pyramid_with_its_resolution(tmp_path: Path) -> None:
    phantom = _Phantom(tmp_path, 0.5, 0.2275)
    tiles, _ = _tile_values(phantom.path, 0.5)
    with open_slide(phantom.path) as slide:
        write_overlay_tiff(tmp_path / "o.tiff", slide, tiles, (0.2275, 0.25))
        geometry = plan_overlay(slide.level_dimensions[0], tiles.tile_wh_level0, (0.2275, 0.25))
    assert geometry.downsample == 4
    assert openslide.OpenSlide.detect_format(tmp_path / "o.tiff") == "generic-tiff"
    with openslide.OpenSlide(tmp_path / "o.tiff") as overlay:
        assert overlay.dimensions == geometry.wh
        assert float(overlay.properties["openslide.mpp-x"]) == pytest.approx(4 * 0.2275, rel=1e-4)
        assert float(overlay.properties["openslide.mpp-y"]) == pytest.approx(4 * 0.25, rel=1e-4)
    with tifffile.TiffFile(tmp_path / "o.tiff") as file:
        assert all(page.is_tiled and page.tilewidth == 256 for page in file.pages)


@pytest.mark.parametrize("level", [0, 1])
def test_tissue_of_the_overlay_is_that_of_the_slide(tmp_path: Path, level: int) -> None:
    """Also in blocks beyond the first, and with a level whose downsample is 3.9999."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (60, 79, 3), np.uint8)
    image = np.kron(coarse, np.ones((64, 64, 1), np.uint8))[:3839, :4999]
    write_pyramid(tmp_path / "s.tif", image, mpp=0.5, compression="none", downsamples=(1, 4)[: level + 1])
    nothing = TileValues("s", "attention", np.zeros(1), np.array([[0, 0]]), (64, 64))
    with open_slide(tmp_path / "s.tif") as slide:
        write_overlay_tiff(tmp_path / "o.tiff", slide, nothing, slide.file_mpp)
    with tifffile.TiffFile(tmp_path / "o.tiff") as file:
        picture = file.pages[0].asarray().astype(int)
    assert picture.shape[:2] == (1920, 2500)
    centres = picture[16:-32:32, 16:-32:32]
    expected = coarse[: centres.shape[0], : centres.shape[1]].astype(int)
    difference = np.abs(centres - expected)[1:]  # the one tile lies in the first row
    assert np.median(difference) < 12  # JPEG
    assert np.corrcoef(centres[1:].ravel(), expected[1:].ravel())[0, 1] > 0.98


def test_overlay_of_a_large_slide_needs_little_memory_and_no_whole_picture(tmp_path: Path) -> None:
    """100,000 px a side: a slide that paints itself, asked for regions only."""
    import tracemalloc

    from wsi_dino.pathology.slide import Slide

    class Endless(Slide):
        largest = 0

        def read_level(self, xy_level: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
            Endless.largest = max(Endless.largest, wh[0] * wh[1])
            return np.full((wh[1], wh[0], 3), 200, np.uint8)

        def read_level_rgb_raw(self, level: int) -> np.ndarray:
            raise NotImplementedError

        def close(self) -> None:
            pass

    sizes = tuple((100_000 // down, 100_000 // down) for down in (1, 4, 16, 64))
    slide = Endless("endless", tmp_path / "endless", sizes, (0.25, 0.25), "test")
    xy = np.stack(np.meshgrid(np.arange(0, 99_000, 1024), np.arange(0, 99_000, 1024)), -1).reshape(-1, 2)
    tiles = TileValues("endless", "attention", np.arange(len(xy), dtype=float), xy, (1024, 1024))
    tracemalloc.start()
    write_overlay_tiff(tmp_path / "o.tiff", slide, tiles, slide.file_mpp)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20
    assert Endless.largest < 2**20
    with openslide.OpenSlide(tmp_path / "o.tiff") as overlay:
        assert overlay.dimensions == (3125, 3125)


def test_geojson_has_what_qupath_reads(tmp_path: Path) -> None:
    tiles = TileValues("s", "attention", np.array([0.1, 0.9]), np.array([[0, 0], [64, 32]]), (64, 32))
    write_overlay_geojson(tmp_path / "o.geojson", tiles, {"attention weight": tiles.values})
    collection = json.loads((tmp_path / "o.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    second = collection["features"][1]
    assert second["geometry"] == {
        "type": "Polygon", "coordinates": [[[64, 32], [128, 32], [128, 64], [64, 64], [64, 32]]],
    }  # fmt: skip
    assert second["properties"]["objectType"] == "tile"
    assert second["properties"]["measurements"] == {"attention weight": 0.9}
    assert second["properties"]["classification"]["name"] == "attention rank 0.9-1.0"
    red, _, blue = second["properties"]["classification"]["color"]
    assert red > blue
    with pytest.raises(ConfigError, match="3 values for 2 tiles"):
        write_overlay_geojson(tmp_path / "wrong.geojson", tiles, {"a": np.zeros(3)})
    assert not (tmp_path / "wrong.geojson").exists()


def test_no_overlay_of_a_slide_that_cannot_be_read(tmp_path: Path) -> None:
    phantom = _Phantom(tmp_path, 0.5, 0.5)
    tiles, _ = _tile_values(phantom.path, 0.5)
    with open_slide(phantom.path) as slide:
        slide.read_level = _refuse  # type: ignore[method-assign]
        with pytest.raises(SlideError, match="torn"):
            write_overlay_tiff(tmp_path / "o.tiff", slide, tiles, None)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom.tif"]


def _refuse(*_: object) -> np.ndarray:
    raise SlideError("a torn tile")


@pytest.mark.parametrize(
    "values", [np.array([0.5, np.nan]), np.array([0.5, 1.5]), np.array([0.5])], ids=["nan", "range", "length"]
)
def test_values_that_are_no_probabilities_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="Painting s"):
        TileValues("s", "probability", values, np.array([[0, 0], [64, 0]]), (64, 64), "tumour")
