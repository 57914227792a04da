"""A run over small drawn slides: those of one class hold a bright square, annotated as ASAP does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from command_line import run_command
from test_annotations import asap_xml
from toy_features import IDENTITY, write_labels

from wsi_dino.feature_file import FeatureFile, write_feature_file
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.synthetic import write_pyramid
from wsi_dino.pathology.tile_grid import read_tile_grid
from wsi_dino.pathology.tile_reader import TileReader

MPP, MPP_ASKED, TILE_PX, WH = 1.6, 2.0, 32, (900, 700)
RESULTS = Path("run/mil/kind/toy")
MIL = (
    "--run", "run", "--labels", "labels.csv", "--target", "kind", "--folds", 3, "--epochs", 25, "--hidden-dim", 16,
    "--attention-dim", 8, "--lr", 0.01, "--bootstrap", 100,
)  # fmt: skip


def make_looking_run(folder: Path, n_slides: int = 18) -> None:
    """Draw slides, tile them at 2 um/px, and take mean colours as features; every second slide has the square."""
    rows = []
    for index in range(n_slides):
        slide_id, is_bright = f"S{index:02}", bool(index % 2)
        _draw(folder, slide_id, np.random.default_rng(index), is_bright)
        rows.append((slide_id, f"P{index}", "square" if is_bright else "none"))
    write_labels(folder / "labels.csv", rows, ("slide_id", "patient_id", "kind"))
    ran = run_command(
        folder, "tile", "slides", "--run", "run", "--mpp", MPP_ASKED, "--tile-px", TILE_PX, "--workers", 1
    )
    assert ran.code == 0, ran.stderr
    for slide_id, *_ in rows:
        _embed(folder, slide_id)


def _draw(folder: Path, slide_id: str, rng: np.random.Generator, is_bright: bool) -> None:
    image = np.full((WH[1], WH[0], 3), 245, np.uint8)
    tissue = image[60:-60, 60:-60]
    tissue[:] = rng.integers(-15, 15, tissue.shape) + np.array([185, 70, 150])
    if is_bright:
        x, y = int(rng.integers(100, 600)), int(rng.integers(100, 400))
        image[y : y + 150, x : x + 150] = (240, 200, 60)
        corners = [(x, y), (x + 150, y), (x + 150, y + 150), (x, y + 150)]
        path = folder / "annotations" / f"{slide_id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(asap_xml([("Tumor", [(float(a), float(b)) for a, b in corners])]))
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    write_pyramid(folder / "slides" / f"{slide_id}.tif", image, mpp=MPP, downsamples=(1, 4))


def _embed(folder: Path, slide_id: str) -> None:
    grid = read_tile_grid(folder / "run" / "tiles" / f"{slide_id}.h5")
    with open_slide(folder / "slides" / f"{slide_id}.tif") as slide:
        means = np.array([tile.mean((0, 1)) for tile in TileReader(slide, grid)]) / 64 - 2
    noise = np.random.default_rng(len(means)).normal(size=(len(means), 5)) / 4
    features = np.concatenate([means, noise], 1).astype(np.float32)
    provenance = {**IDENTITY, "tiling": grid.description()}
    path = folder / "run" / "features" / "toy" / f"{slide_id}.h5"
    write_feature_file(path, FeatureFile(features, grid.xy, provenance))
