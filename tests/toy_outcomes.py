"""A run folder whose features tell a hidden severity, and labels of every kind that follow from it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from toy_features import IDENTITY

from wsi_dino.feature_file import FeatureFile, write_feature_file

HEADER = ("slide_id", "patient_id", "months", "died", "score", "grade3", "ER", "official")


def make_outcome_run(folder: Path, n_patients: int = 60, seed: int = 0, encoder: str = "toy") -> None:
    """Fill ``folder/run/features/ENCODER`` and write ``folder/labels.csv``; every third patient has two slides.

    A fifth of the tiles shows the severity in their first value, others ER in the second. Of ``grade3`` every fifth
    patient's value is missing.
    """
    random, rows = np.random.default_rng(seed), []
    for patient in range(n_patients):
        severity, is_er = float(random.normal()), bool(random.random() < 0.5)
        happens = 30 * np.exp(-1.2 * severity) * random.weibull(4)
        watched = random.uniform(10, 150)
        outcome = (f"{max(0.1, min(happens, watched)):.1f}", "yes" if happens <= watched else "no")
        grade = "" if patient % 5 == 0 else int(severity > 0)
        value = f"{50 + 10 * severity + random.normal():.1f}"
        for slide in range(2 if patient % 3 == 0 else 1):
            name = f"S{patient}-{slide}"
            _write(folder / "run/features" / encoder / f"{name}.h5", severity, is_er, random, encoder)
            er = "Positive" if is_er else "Negative"
            rows.append((name, f"P{patient}", *outcome, value, grade, er, "test" if patient % 4 == 0 else "train"))
    with (folder / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([HEADER, *rows])


def _write(path: Path, severity: float, is_er: bool, random: np.random.Generator, encoder: str) -> None:
    n = int(random.integers(15, 30))
    features = random.normal(size=(n, 8)).astype(np.float32)
    features[: n // 5, 0] += 4 * severity
    features[n // 5 : n // 2, 1] += 4 * is_er
    coords = np.stack([np.arange(n) % 6, np.arange(n) // 6], 1) * 224
    tiling = {"tile_wh_level0": [224, 224], "tile_px": 224, "mpp_asked": 0.5}
    write_feature_file(path, FeatureFile(features, coords, {**IDENTITY, "encoder": encoder, "tiling": tiling}))
