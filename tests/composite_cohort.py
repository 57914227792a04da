"""Slides composed of real tissue tiles, whose truth is known tile by tile."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_dino.pathology.synthetic import write_pyramid

TILE_PX = 224


@dataclass(frozen=True)
class CompositeCohort:
    """Slides, labels and truth.

    Attributes:
        slides: folder of pyramidal TIFFs.
        labels: CSV with ``slide_id, patient_id, tumour, shuffled``; the last is a random permutation. (Labels that
            are *exactly* uncorrelated would give an AUC below 0.5: what a training set has too much of, its
            test set then lacks.)
        tumour_xy: for each slide the top-left corners, in level-0 px, of the tiles that show tumour.
    """

    slides: Path
    labels: Path
    tumour_xy: dict[str, set[tuple[int, int]]]


def draw_cohort(folder: Path, tiles_folder: Path, n_slides: int, side_tiles: int, n_tumour: int) -> CompositeCohort:
    """Draw `n_slides` slides of `side_tiles` x `side_tiles` real tiles in a white border of one tile.

    Every second slide has `n_tumour` tumour tiles in neighbouring places. All crops of one source image lie
    on one slide, so that no slide can be known by its source.
    """
    benign, tumour = (_groups(tiles_folder, kind) for kind in ("0", "1"))
    truth: dict[str, set[tuple[int, int]]] = {}
    rows = []
    for index in range(n_slides):
        name, is_positive = f"slide-{index:03d}", index % 2 == 1
        places = [(row, column) for row in range(side_tiles) for column in range(side_tiles)]
        start = index % (len(places) - n_tumour)
        marked = set(places[start : start + n_tumour]) if is_positive else set()
        image = _mosaic(side_tiles, marked, _pool(benign, len(places)), _pool(tumour, n_tumour) if marked else [])
        write_pyramid(folder / "slides" / f"{name}.tif", image, mpp=0.5, downsamples=(1, 4), quality=95)
        truth[name] = {((column + 1) * TILE_PX, (row + 1) * TILE_PX) for row, column in marked}
        rows.append([name, f"patient-{index:03d}", _word(is_positive)])
    shuffled = np.random.default_rng(0).permutation([row[2] for row in rows])
    rows = [[*row, str(label)] for row, label in zip(rows, shuffled, strict=True)]
    labels = folder / "labels.csv"
    with labels.open("w", newline="") as stream:
        csv.writer(stream).writerows([["slide_id", "patient_id", "tumour", "shuffled"], *rows])
    return CompositeCohort(folder / "slides", labels, truth)


def _word(is_positive: bool) -> str:
    return "Positive" if is_positive else "Negative"


def _groups(tiles_folder: Path, tumour: str) -> Iterator[list[Path]]:
    groups: dict[str, list[Path]] = {}
    with (tiles_folder / "index.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["tumor"] == tumour:
                groups.setdefault(row["source_group"], []).append(tiles_folder / row["image"])
    return iter([groups[name] for name in sorted(groups)])


def _pool(groups: Iterator[list[Path]], wanted: int) -> list[np.ndarray]:
    """Take whole source groups; turn their tiles when they are too few for the places."""
    paths: list[Path] = []
    while len(paths) < min(wanted, 12):
        paths += next(groups)
    tiles = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    turned = [np.rot90(tile, quarter) for quarter in range(4) for tile in tiles]
    return turned[:wanted]


def _mosaic(
    side_tiles: int, marked: set[tuple[int, int]], benign: list[np.ndarray], tumour: list[np.ndarray]
) -> np.ndarray:
    side = (side_tiles + 2) * TILE_PX
    image = np.full((side, side, 3), 255, np.uint8)
    for row in range(side_tiles):
        for column in range(side_tiles):
            pool = tumour if (row, column) in marked else benign
            y, x = (row + 1) * TILE_PX, (column + 1) * TILE_PX
            image[y : y + TILE_PX, x : x + TILE_PX] = pool.pop()
    return image
