"""The fast path gives OpenSlide's pixels, decodes each stored tile once, and refuses the rest."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from wsi_dino.errors import SlideError
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.synthetic import draw_tissue, write_pyramid
from wsi_dino.pathology.tiled_tiff_slide import TileCache, TiledTiffSlide, UnsupportedTiffError

_SHARED = (
    "CMU-1-Small-Region.svs",
    "CMU-1-Small-Region.derived-pyramid.tif",
    "TCGA-CR-7395-01A-01-TS1.svs",
)


def _white_composited(handle: openslide.OpenSlide, xy: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
    rgba = np.asarray(handle.read_region(xy, level, wh))
    return np.where(rgba[..., 3:] == 255, rgba[..., :3], np.uint8(255))


@pytest.mark.parametrize("name", _SHARED)
def test_random_regions_equal_openslide_exactly(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / name
    rng = np.random.default_rng(0)
    with open_slide(path) as slide, openslide.OpenSlide(path) as handle:
        assert slide.backend == "tiled-tiff"
        width, height = slide.level_dimensions[0]
        for _ in range(40):
            xy = (int(rng.integers(-150, width)), int(rng.integers(-150, height)))
            wh = (int(rng.integers(1, 500)), int(rng.integers(1, 500)))
            np.testing.assert_array_equal(slide.read_region(xy, 0, wh), _white_composited(handle, xy, 0, wh))


@pytest.mark.parametrize("name", _SHARED)
def test_whole_levels_equal_openslide_exactly(shared_data: Path, name: str) -> None:
    path = shared_data / "slides" / name
    with open_slide(path) as slide, openslide.OpenSlide(path) as handle:
        for level, wh in enumerate(handle.level_dimensions):
            np.testing.assert_array_equal(slide.read_level_rgb_raw(level), _white_composited(handle, (0, 0), level, wh))


def _write_lzw_with_predictor(path: Path, image: np.ndarray) -> None:
    tifffile.imwrite(path, image, tile=(256, 256), compression="lzw", predictor=True, photometric="rgb", metadata=None)


def _write_subsampled(path: Path, image: np.ndarray, subsampling: tuple[int, int]) -> None:
    tifffile.imwrite(
        path,
        image,
        tile=(256, 256),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=subsampling,
        metadata=None,
        bigtiff=subsampling == (2, 1),
    )


@pytest.mark.parametrize("kind", ["lzw", "4:4:4", "4:2:2", "4:2:0", "svs jpeg", "svs jpeg2000"])
def test_every_accepted_storage_equals_openslide(tmp_path: Path, kind: str) -> None:
    image, _ = draw_tissue(np.random.default_rng(0), (900, 700), tumour=True)
    path = tmp_path / "S.tif"
    if kind == "lzw":
        _write_lzw_with_predictor(path, image)
    elif kind.startswith("svs"):
        write_pyramid(path, image, compression=kind.split()[1], flavour="svs")  # type: ignore[arg-type]
    else:
        _write_subsampled(path, image, {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}[kind])
    with open_slide(path, backend="tiled-tiff") as fast, open_slide(path, backend="openslide") as reference:
        for level in range(len(fast.level_dimensions)):
            np.testing.assert_array_equal(fast.read_level_rgb_raw(level), reference.read_level_rgb_raw(level))


def test_a_row_of_tiles_decodes_each_stored_tile_once(tmp_path: Path) -> None:
    image, _ = draw_tissue(np.random.default_rng(0), (2048, 1024), tumour=False)
    write_pyramid(tmp_path / "S.tif", image, downsamples=(1,))
    with TiledTiffSlide(tmp_path / "S.tif", "S") as slide:
        for y in range(0, 1024, 100):
            for x in range(0, 2048, 100):
                slide.read_level((x, y), 0, (100, 100))
        assert slide.n_decoded == 8 * 4


def test_threads_read_the_same_pixels_and_share_the_decoding(tmp_path: Path) -> None:
    image, _ = draw_tissue(np.random.default_rng(0), (1024, 1024), tumour=True)
    write_pyramid(tmp_path / "S.tif", image, downsamples=(1,), compression="deflate")
    corners = [(x, y) for y in range(0, 1024, 64) for x in range(0, 1024, 64)]
    with TiledTiffSlide(tmp_path / "S.tif", "S") as slide, ThreadPoolExecutor(8) as pool:
        regions = list(pool.map(lambda xy: slide.read_level(xy, 0, (64, 64)), corners))
        assert slide.n_decoded == 16
    for (x, y), region in zip(corners, regions, strict=True):
        np.testing.assert_array_equal(region, image[y : y + 64, x : x + 64])


def test_cache_stays_within_its_bytes_and_forgets_the_oldest() -> None:
    cache = TileCache(max_bytes=30)
    for key in (1, 2, 3, 1, 4):
        cache.get(key, lambda: np.zeros(10, np.uint8))
    assert cache.n_decoded == 4
    cache.get(1, lambda: pytest.fail("1 was used lately and must still be there"))
    cache.get(2, lambda: np.zeros(10, np.uint8))
    assert cache.n_decoded == 5


def test_a_failing_decode_fails_for_all_who_wait_and_is_tried_again() -> None:
    cache = TileCache(max_bytes=30)
    entered, leave = threading.Event(), threading.Event()

    def fail() -> np.ndarray:
        entered.set()
        leave.wait(10)
        raise ValueError("unreadable")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "k", fail)
        entered.wait(10)
        second = pool.submit(cache.get, "k", fail)
        leave.set()
        for waiting in (first, second):
            with pytest.raises(ValueError, match="unreadable"):
                waiting.result(10)
    assert cache.get("k", lambda: np.ones(1, np.uint8)).tolist() == [1]


@pytest.mark.parametrize("kind", ["grey", "16 bit", "planar", "alpha", "missing tile"])
def test_what_it_would_read_otherwise_is_refused_and_auto_goes_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "S.tif"
    image = np.full((512, 512, 3), 90, np.uint8)
    if kind == "alpha":
        write_pyramid(path, np.full((512, 512, 4), 90, np.uint8), compression="deflate", downsamples=(1,))
    elif kind == "missing tile":
        _write_without_first_tile(path, image)
    else:
        array = {"grey": image[..., 0], "16 bit": image.astype(np.uint16) * 257, "planar": image.transpose(2, 0, 1)}[
            kind
        ]
        photometric = "minisblack" if kind == "grey" else "rgb"
        planar = "separate" if kind == "planar" else "contig"
        tifffile.imwrite(
            path, array, tile=(256, 256), photometric=photometric, planarconfig=None if kind == "grey" else planar
        )
    with pytest.raises(UnsupportedTiffError, match="tiled-tiff"):
        open_slide(path, backend="tiled-tiff")
    with open_slide(path) as slide:
        assert slide.backend in ("openslide", "image")
        assert slide.read_level((300, 300), 0, (2, 2)).shape == (2, 2, 3)


def _write_without_first_tile(path: Path, image: np.ndarray) -> None:
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="deflate", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].aspage().tags
        positions = [tags["TileByteCounts"], tags["TileOffsets"]]
        width = {tag.name: {3: 2, 4: 4, 16: 8}[int(tag.dtype)] for tag in positions}
    data = bytearray(path.read_bytes())
    for tag in positions:
        data[tag.valueoffset : tag.valueoffset + width[tag.name]] = bytes(width[tag.name])
    path.write_bytes(data)


@pytest.mark.parametrize("tile", [8, 9, 10, 14, 15])
@pytest.mark.parametrize("from_middle", [True, False])
def test_a_tile_with_a_hole_fails_where_openslide_fails(tmp_path: Path, tile: int, from_middle: bool) -> None:
    image, _ = draw_tissue(np.random.default_rng(3), (1500, 1200), tumour=True)
    path = tmp_path / "S.tif"
    write_pyramid(path, image, downsamples=(1,))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    damaged = bytearray(path.read_bytes())
    begin, end = (offset + count // 2, offset + count) if from_middle else (offset + count // 3, offset + count // 2)
    damaged[begin:end] = bytes(end - begin)
    path.write_bytes(damaged)
    failures = []
    for backend in ("tiled-tiff", "openslide"):
        with open_slide(path, backend=backend) as slide:
            try:
                slide.read_level_rgb_raw(0)
            except SlideError as error:
                failures.append(str(error))
    assert len(failures) == 2
