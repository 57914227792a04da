"""A run folder with made-up features in which a few instances tell the class, and the labels for it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.feature_file import FeatureFile, write_feature_file

IDENTITY: dict[str, Any] = {
    "encoder": "toy", "embed_dim": 8, "pooling": "mean", "input_px": 224, "weights_sha256": "abc", "stain_norm": None,
    "tiles": "224 px at 0.5 um/px",
}  # fmt: skip
SMALL = ("--epochs", 6, "--min-epochs", 1, "--hidden-dim", 16, "--attention-dim", 8, "--bootstrap", 100, "--lr", 0.01)


def write_features(path: Path, is_positive: bool, seed: int, n: int = 24, **changes: Any) -> None:
    """Write the features of one slide; positive ones have three tiles with a large first value."""
    rng = np.random.default_rng(seed)
    identity = IDENTITY | changes
    features = rng.normal(size=(n, identity["embed_dim"])).astype(np.float32)
    if is_positive:
        features[:3, 0] += 6
    coords = np.stack([np.arange(n) % 6, np.arange(n) // 6], 1) * 224
    tiling = {"tile_wh_level0": [224, 224], "tile_px": 224, "mpp_asked": 0.5}
    write_feature_file(path, FeatureFile(features, coords, {**identity, "tiling": tiling}))


def write_labels(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Write a label table."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header or ("slide_id", "patient_id", "ER"), *rows])


def make_run(folder: Path, n_slides: int = 30, encoder: str = "toy", slides_per_patient: int = 1) -> None:
    """Fill ``folder/run/features/ENCODER`` and write ``folder/labels.csv``; every second patient is positive."""
    rows = []
    for index in range(n_slides):
        patient = index // slides_per_patient
        write_features(
            folder / "run" / "features" / encoder / f"S{index}.h5", bool(patient % 2), index, encoder=encoder
        )
        rows.append((f"S{index}", f"P{patient}", "Positive" if patient % 2 else "Negative"))
    write_labels(folder / "labels.csv", rows)
