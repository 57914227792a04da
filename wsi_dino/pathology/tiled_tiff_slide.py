"""The fast path for tiled TIFF and SVS: the pixels OpenSlide gives, several times as fast.

OpenSlide says what the levels are; compressed tiles are then read with one ``pread`` each, decoded
without the GIL, and kept in one cache shared by all threads, in which each tile is decoded once even
when several threads want it at the same moment.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from wsi_dino.errors import SlideError
from wsi_dino.pathology.openslide_slide import (
    OpenSlideSlide,
    detected_vendor,
    mpp_of_properties,
    open_handle,
    tile_row_cache_bytes,
)
from wsi_dino.pathology.slide import WHITE, Slide

_VENDORS = ("aperio", "generic-tiff")
_RGB, _YCBCR = 2, 6
_JPEG = 7
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_HOLE = bytes(64)  # what an interrupted copy leaves; rare, though lawful, in good data
_MAY_FOLLOW_FF = np.isin(np.arange(256), [0x00, *range(0xD0, 0xD8), 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE, 0xFF])
"""What may follow a byte FF after a JPEG's first scan has begun: stuffing, restarts, tables, scans, the end."""
_PHOTOMETRIC_OF = {1: (_RGB,), 5: (_RGB,), 8: (_RGB,), 32946: (_RGB,), _JPEG: (_RGB, _YCBCR), 33005: (_RGB,)}
"""Photometric interpretations read like OpenSlide does, for none, LZW, deflate (two codes), JPEG, Aperio JPEG 2000."""


def is_doubtful_jpeg(data: bytes) -> bool:
    """Return whether a JPEG stream lacks its end, holds bytes that no encoder writes, or a long run of zeros.

    The fast decoder fills what is missing with grey and says nothing, so this is looked at before.

    Examples:
        >>> is_doubtful_jpeg(bytes.fromhex("ffd8 ffda 0102 ff00 03 ffd9"))
        False
        >>> is_doubtful_jpeg(bytes.fromhex("ffd8 ffda 0102"))
        True
    """
    begin = data.find(_JPEG_SCAN)
    if begin < 0 or data.find(_JPEG_END, begin) < 0 or data.find(_HOLE, begin) >= 0:
        return True
    scan = np.frombuffer(data, np.uint8, offset=begin)
    return not bool(_MAY_FOLLOW_FF[scan[1:][scan[:-1] == 0xFF]].all())


class UnsupportedTiffError(SlideError):
    """This file is not one that the fast path reads with exactly OpenSlide's pixels."""


class TileCache:
    """Least-recently-used cache of decoded tiles, bounded in bytes, safe for threads.

    Examples:
        >>> cache = TileCache(max_bytes=10)
        >>> cache.get("a", lambda: np.zeros(8, np.uint8)).sum(), cache.n_decoded
        (np.uint64(0), 1)
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_decoded = 0
        self._n_bytes = 0
        self._tiles: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._pending: dict[Any, Future[np.ndarray]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the tile of `key`, from the cache, from a thread that is decoding it, or from `decode`."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
                return tile
            pending = self._pending.get(key)
            if pending is None:
                mine = self._pending[key] = Future()
        if pending is not None:
            return pending.result()
        return self._decode_once(key, decode, mine)

    def _decode_once(self, key: Any, decode: Callable[[], np.ndarray], mine: Future[np.ndarray]) -> np.ndarray:
        try:
            tile = decode()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self._keep(key, tile)
        mine.set_result(tile)
        return tile

    def _keep(self, key: Any, tile: np.ndarray) -> None:
        self._tiles[key] = tile
        self._n_bytes += tile.nbytes
        self.n_decoded += 1
        while self._n_bytes > self.max_bytes and len(self._tiles) > 1:
            self._n_bytes -= self._tiles.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget all tiles."""
        with self._lock:
            self._tiles.clear()
            self._n_bytes = 0


class _Level:
    """Where the tiles of one pyramid level lie in the file, and how one is decoded."""

    def __init__(self, page: Any) -> None:
        self.tile_wh = (int(page.tilewidth), int(page.tilelength))
        self.n_columns = -(-int(page.imagewidth) // self.tile_wh[0])
        self.offsets = np.asarray(page.dataoffsets, np.int64)
        self.byte_counts = np.asarray(page.databytecounts, np.int64)
        self._decode_page = page.decode
        self._tables = page.jpegtables
        self._photometric = int(page.photometric)
        self.compression = int(page.compression)

    def decode(self, data: bytes, index: int) -> np.ndarray:
        """Return one tile, uint8 ``(tile height, tile width, 3)``."""
        if self.compression == _JPEG:
            source = "RGB" if self._photometric == _RGB else "YCBCR"
            return imagecodecs.jpeg8_decode(data, tables=self._tables, colorspace=source, outcolorspace="RGB")
        tile = self._decode_page(data, index)[0]
        return np.ascontiguousarray(tile[0])


class TiledTiffSlide(Slide):
    """A tiled TIFF or Aperio SVS read through tifffile and imagecodecs; its pixels equal OpenSlide's.

    Raises:
        UnsupportedTiffError: the file has something that this path would not read exactly as OpenSlide does
            (other vendors, other compressions, transparency, 16 bit, missing tiles).
        SlideError: the file is damaged.
    """

    backend = "tiled-tiff"

    def __init__(self, file: Path, slide_id: str) -> None:
        vendor = detected_vendor(file)
        if vendor not in _VENDORS:
            raise _unsupported(file, f"OpenSlide takes it for {vendor or 'no slide'}, not for a tiled TIFF or SVS")
        with open_handle(file) as handle:
            dimensions = tuple((int(w), int(h)) for w, h in handle.level_dimensions)
            mpp, source = mpp_of_properties(handle.properties)
        self._levels = _read_levels(file, dimensions)
        super().__init__(slide_id, file, dimensions, mpp, source)
        largest = self._levels[0]
        self._cache = TileCache(tile_row_cache_bytes(dimensions[0][0], largest.tile_wh, 3))
        self._descriptor: int | None = os.open(file, os.O_RDONLY)

    @property
    def n_decoded(self) -> int:
        """How many stored tiles have been decoded since the slide was opened."""
        return self._cache.n_decoded

    def read_level(self, xy_level: tuple[int, int], level: int, wh: tuple[int, int]) -> np.ndarray:
        self._check_level(level)
        (x, y), (w, h) = xy_level, wh
        width, height = self.level_dimensions[level]
        right, bottom = min(x + w, width), min(y + h, height)
        inside = x >= 0 and y >= 0 and right == x + w and bottom == y + h
        region = np.empty((h, w, 3), np.uint8) if inside else np.full((h, w, 3), WHITE, np.uint8)
        tile_w, tile_h = self._levels[level].tile_wh
        for row in range(max(y, 0) // tile_h, -(-bottom // tile_h)):
            for column in range(max(x, 0) // tile_w, -(-right // tile_w)):
                self._paste(region, (x, y, right, bottom), level, (row, column))
        return region

    def _paste(self, region: np.ndarray, box: tuple[int, int, int, int], level: int, cell: tuple[int, int]) -> None:
        x, y, right, bottom = box
        tile_w, tile_h = self._levels[level].tile_wh
        left, top = cell[1] * tile_w, cell[0] * tile_h
        x0, y0 = max(x, left, 0), max(y, top, 0)
        x1, y1 = min(right, left + tile_w), min(bottom, top + tile_h)
        tile = self._tile(level, cell)
        region[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]

    def _tile(self, level: int, cell: tuple[int, int]) -> np.ndarray:
        index = cell[0] * self._levels[level].n_columns + cell[1]
        return self._cache.get((level, index), lambda: self._decode(level, index))

    def _decode(self, level: int, index: int) -> np.ndarray:
        stored = self._levels[level]
        offset, count = int(stored.offsets[index]), int(stored.byte_counts[index])
        data = self._read_bytes(offset, count)
        try:
            if len(data) != count:
                raise ValueError(f"{len(data)} of its {count} bytes are in the file")
            if stored.compression == _JPEG and is_doubtful_jpeg(data):
                self._ask_openslide(level, index)
            tile = stored.decode(data, index)
            if tile.shape != (stored.tile_wh[1], stored.tile_wh[0], 3) or tile.dtype != np.uint8:
                raise ValueError(f"it decodes to {tile.shape} {tile.dtype}")
        except Exception as error:  # each codec has its own kind of error
            raise SlideError(
                f"Reading {self.path}: stored tile {index} of level {level} is unreadable ({error}). "
                "The file is damaged or truncated: copy it again."
            ) from error
        return tile

    def _ask_openslide(self, level: int, index: int) -> None:
        """Read the region of a doubtful tile with the reference, which raises where it finds damage."""
        stored = self._levels[level]
        row, column = divmod(index, stored.n_columns)
        with OpenSlideSlide(self.path, self.slide_id) as reference:
            reference.read_level((column * stored.tile_wh[0], row * stored.tile_wh[1]), level, stored.tile_wh)

    def _read_bytes(self, offset: int, count: int) -> bytes:
        if self._descriptor is None:
            raise SlideError(f"Reading {self.path}: the slide is closed.")
        try:
            return os.pread(self._descriptor, count, offset)
        except OSError as error:
            raise SlideError(f"Reading {self.path}: {error.strerror or error}.") from error

    def read_level_rgb_raw(self, level: int) -> np.ndarray:
        self._check_level(level)
        return self.read_level((0, 0), level, self.level_dimensions[level])

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._cache.clear()


def _read_levels(file: Path, dimensions: tuple[tuple[int, int], ...]) -> list[_Level]:
    try:
        with _quiet_tifffile(), tifffile.TiffFile(file) as tiff:
            pages = [page for page in (item.aspage() for item in tiff.pages) if page.is_tiled]
            if len({(p.imagewidth, p.imagelength) for p in pages}) != len(pages):
                raise _unsupported(file, "two of its tiled images have one size")
            by_size = {(int(p.imagewidth), int(p.imagelength)): p for p in pages}
            return [_read_level(file, by_size.get(wh)) for wh in dimensions]
    except SlideError:
        raise
    except Exception as error:  # tifffile meets damaged headers with many kinds of error
        raise _unsupported(file, f"its header cannot be read ({error})") from error


def _read_level(file: Path, page: Any) -> _Level:
    if page is None:
        raise _unsupported(file, "one of its levels is not a tiled image")
    _check_extent(file, page)
    compression, photometric = int(page.compression), int(page.photometric)
    if photometric not in _PHOTOMETRIC_OF.get(compression, ()):
        raise _unsupported(file, f"compression {compression} with photometric interpretation {photometric}")
    if page.dtype != np.uint8 or page.samplesperpixel != 3 or int(page.planarconfig) != 1 or page.extrasamples:
        raise _unsupported(file, f"{page.samplesperpixel} samples of {page.dtype} a px")
    if page.tags.valueof("Orientation", default=1) != 1 or page.imagedepth != 1:
        raise _unsupported(file, "a turned or three-dimensional image")
    level = _Level(page)
    n_tiles = level.n_columns * -(-page.imagelength // level.tile_wh[1])
    if len(level.byte_counts) != n_tiles or (level.byte_counts == 0).any():
        raise _unsupported(file, "some of its tiles are not stored")
    return level


def _check_extent(file: Path, page: Any) -> None:
    ends = np.asarray(page.dataoffsets, np.int64) + np.asarray(page.databytecounts, np.int64)
    n_missing = int((ends > file.stat().st_size).sum())
    if n_missing:
        raise SlideError(
            f"Opening {file}: truncated: {n_missing} of {len(ends)} stored tiles of its {page.imagewidth}x"
            f"{page.imagelength} px level lie beyond the end of the file. Copy it again."
        )


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """Keep tifffile from printing what it thinks of a header; what matters is raised."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _unsupported(file: Path, why: str) -> UnsupportedTiffError:
    return UnsupportedTiffError(f"Opening {file} as tiled-tiff: {why}. Use the openslide backend (or auto).")
