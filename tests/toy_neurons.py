"""Drawn neurons: columns that wander from section to section, with dark membranes between them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def drawn_neurons(
    shape: tuple[int, int, int] = (8, 48, 64), n: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return grey values uint8 and ids uint32 ``(z, y, x)``; 0 are membranes."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform((0, 0), shape[1:], (n, 2))
    drift = rng.uniform(-0.5, 0.5, (n, 2))
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in shape[1:]), indexing="ij"), -1)
    ids = np.empty(shape, np.uint32)
    for z in range(shape[0]):
        away = np.linalg.norm(grid[:, :, None] - (centres + z * drift), axis=-1)
        nearest = np.sort(away, -1)
        ids[z] = np.where(nearest[..., 1] - nearest[..., 0] < 2.5, 0, away.argmin(-1) + 1)
    grey = np.where(ids > 0, 180.0, 50.0) + rng.normal(0, 12, shape)
    return np.clip(grey, 0, 255).astype(np.uint8), ids


def write_pair(folder: Path, name: str, grey: np.ndarray, ids: np.ndarray, key: str = "main") -> tuple[str, str]:
    """Write both as HDF5 and return their paths."""
    paths = folder / f"{name}_inputs.h5", folder / f"{name}_labels.h5"
    for path, voxels in zip(paths, (grey, ids), strict=True):
        with h5py.File(path, "w") as file:
            file[key] = voxels
    return str(paths[0]), str(paths[1])
