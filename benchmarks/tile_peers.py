"""The work of `benchmarks/tile.py` done by other tools: run by it with another environment's interpreter.

    python benchmarks/tile_peers.py REPEATS SLIDE ...

Imports no part of this project. Prints one JSON object a tool and slide: seconds of tissue mask and
coordinates of 224 px tiles, best of REPEATS, imports and first call excluded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TILE_PX = 224
_ASSUMED_MPP = 0.5


def _tiatoolbox() -> Callable[[str], int]:
    if importlib.util.find_spec("wsi_dino"):  # where they share an environment, mend its torchvision first
        from wsi_dino.encoders.torchvision_guard import ensure_torchvision

        ensure_torchvision()
    from tiatoolbox.tools.patchextraction import get_patch_extractor
    from tiatoolbox.wsicore.wsireader import WSIReader

    def tile(path: str) -> int:
        reader = WSIReader.open(path)
        mask = (
            reader.tissue_mask("otsu", resolution=32 * _ASSUMED_MPP, units="mpp")
            if reader.info.mpp is not None
            else (reader.tissue_mask("otsu", resolution=1 / 32, units="baseline"))
        )
        size = (_TILE_PX, _TILE_PX)
        extractor = get_patch_extractor(
            "slidingwindow", input_img=reader, patch_size=size, input_mask=mask, min_mask_ratio=0.25,
            resolution=1.0, units="baseline",
        )  # fmt: skip
        return len(extractor.coordinate_list)

    return tile


def _hs2p() -> Callable[[str], int]:
    import hs2p

    tiling = hs2p.TilingConfig(
        requested_spacing_um=_ASSUMED_MPP, requested_tile_size_px=_TILE_PX, tolerance=0.1, overlap=0.0
    )
    segmentation = hs2p.SegmentationConfig(method="threshold")

    def tile(path: str) -> int:
        slide = hs2p.SlideSpec(sample_id=Path(path).stem, image_path=Path(path), spacing_at_level_0=_ASSUMED_MPP)
        return len(hs2p.tile_slide(slide, tiling=tiling, segmentation=segmentation, filtering=hs2p.FilterConfig()).x)

    return tile


def _lazyslide() -> Callable[[str], int]:
    import lazyslide
    from wsidata import open_wsi

    def tile(path: str) -> int:
        with tempfile.TemporaryDirectory() as folder:
            slide = open_wsi(path, store=os.path.join(folder, "slide.zarr"))
            lazyslide.pp.find_tissues(slide)
            lazyslide.pp.tile_tissues(slide, _TILE_PX)
            return len(slide.shapes["tiles"])

    return tile


_TOOLS: dict[str, Callable[[], Callable[[str], int]]] = {
    "tiatoolbox": _tiatoolbox,
    "hs2p": _hs2p,
    "lazyslide": _lazyslide,
}


def main(repeats: int, paths: list[str]) -> None:
    """Time every tool that this environment has on every slide."""
    for name, load in _TOOLS.items():
        if importlib.util.find_spec(name) is None:
            continue
        start = time.perf_counter()
        tile = load()
        _print(tool=name, import_s=round(time.perf_counter() - start, 2))
        for path in paths:
            _print(tool=name, slide=Path(path).name, **_timed(tile, path, repeats))


def _timed(tile: Callable[[str], int], path: str, repeats: int) -> dict[str, Any]:
    seconds = []
    try:
        n_tiles = tile(path)
        for _ in range(repeats):
            start = time.perf_counter()
            tile(path)
            seconds.append(time.perf_counter() - start)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"seconds": round(min(seconds), 3), "tiles": n_tiles}


def _print(**row: Any) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
