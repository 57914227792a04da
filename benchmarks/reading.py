"""Tiles read per second, OpenSlide beside the fast path for tiled TIFF, on the same tiles in the same order.

Run: ``python benchmarks/reading.py [SLIDES ...] [--threads N] [--tile-px 224] [--synthetic-px 20000]``.
Prints one table; asserts nothing but that both gave the same pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.synthetic import TissuePainter, write_pyramid

_MAX_TILES = 2000
_ROUNDS = 2


def corners_of(wh: tuple[int, int], tile_px: int) -> list[tuple[int, int]]:
    """Return the corners of a grid of whole tiles, ordered by (y, x), the middle `_MAX_TILES` of it."""
    rows, columns = range(0, wh[1] - tile_px + 1, tile_px), range(0, wh[0] - tile_px + 1, tile_px)
    corners = [(x, y) for y in rows for x in columns]
    begin = max(0, (len(corners) - _MAX_TILES) // 2)
    return corners[begin : begin + _MAX_TILES]


def tiles_per_s(path: Path, backend: str, corners: list[tuple[int, int]], tile_px: int, threads: int) -> float:
    """Return the best of some rounds, each with a freshly opened slide (the file itself stays in the page cache)."""
    best = 0.0
    for _ in range(_ROUNDS):
        with open_slide(path, backend=backend) as slide, ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            for _tile in pool.map(lambda xy: slide.read_level(xy, 0, (tile_px, tile_px)).shape, corners):
                pass
            best = max(best, len(corners) / (time.perf_counter() - start))
    return best


def pixels_digest(path: Path, backend: str, corners: list[tuple[int, int]], tile_px: int) -> str:
    """Return a digest of the pixels of every tenth tile."""
    digest = hashlib.sha256()
    with open_slide(path, backend=backend) as slide:
        for xy in corners[::10]:
            digest.update(slide.read_level(xy, 0, (tile_px, tile_px)).tobytes())
    return digest.hexdigest()


def print_slide(name: str, path: Path, tile_px: int, thread_counts: list[int]) -> None:
    """Print a line for each order and number of threads."""
    with open_slide(path) as slide:
        if slide.backend != "tiled-tiff":
            print(f"{name[:36]:36} read by {slide.backend}: no second path to compare")
            return
        corners = corners_of(slide.level_dimensions[0], tile_px)
    same = len({pixels_digest(path, backend, corners, tile_px) for backend in ("openslide", "tiled-tiff")}) == 1
    shuffled = random.Random(0).sample(corners, len(corners))
    for order, listed in (("slide order", corners), ("random", shuffled)):
        for threads in thread_counts:
            slow, fast = (tiles_per_s(path, b, listed, tile_px, threads) for b in ("openslide", "tiled-tiff"))
            ratio = f"{fast / slow:5.2f}x  {'same pixels' if same else 'PIXELS DIFFER'}"
            print(f"{name[:36]:36} {order:11} {threads:2} thr {len(listed):5} tiles {slow:8.0f} {fast:8.0f} {ratio}")


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tile-px", type=int, default=224)
    parser.add_argument("--synthetic-px", type=int, default=20_000)
    arguments = parser.parse_args()
    thread_counts = sorted({1, arguments.threads})
    print(
        f"{'slide':36} {'order':11}                    openslide tiled-tiff  (tiles/s, {arguments.tile_px} px, level 0)"
    )
    for path in arguments.slides:
        print_slide(path.name, path, arguments.tile_px, thread_counts)
    if arguments.synthetic_px:
        with tempfile.TemporaryDirectory() as folder:
            wh = (arguments.synthetic_px, arguments.synthetic_px)
            path = Path(folder) / "synthetic.svs"
            start = time.perf_counter()
            painter = TissuePainter(np.random.default_rng(0), wh, tumour=True)
            write_pyramid(path, painter, wh=wh, flavour="svs")
            size = path.stat().st_size / 2**20
            print(
                f"wrote a synthetic SVS of {wh[0]}x{wh[1]} px, {size:.0f} MiB, in {time.perf_counter() - start:.1f} s"
            )
            print_slide(f"synthetic SVS {wh[0]}", path, arguments.tile_px, thread_counts)


if __name__ == "__main__":
    main()
