"""CPU minutes and peak memory of each stage of `radiology em` on a drawn volume, of CREMI's whole size by default.

The network is a stand-in: grey values answer as affinities, in windows that are blended as those of a network; learning
takes one step. All else is what the command does. Each stage is a process of its own; its peak resident set is what the
system reports.
Run: python benchmarks/neurons.py [--sections 125] [--side 1250] [--scoring SCORING] [--no-floors] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_STAGES = ("affinities", "fragments", "agglomerate", "evaluate")
_CELL_PX = (48, 40)
_N_LEARNING = 10


def main() -> None:
    """Print one line a stage."""
    given = _arguments()
    if given.stage:
        _do(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = given.folder or Path(folder)
        for name, n_sections in (("train", _N_LEARNING), ("test", given.sections)):
            if not (place / f"{name}.h5").is_file():
                draw(place / f"{name}.h5", n_sections, given.side)
        print(f"{given.sections} x {given.side} x {given.side} voxels, {given.scoring}")
        print(f"{'stage':<12}{'CPU minutes':>12}{'peak GiB':>10}")
        for stage in _STAGES:
            cpu_s, peak_kib = _measure(["--folder", str(place), "--stage", stage])
            print(f"{stage:<12}{cpu_s / 60:>12.1f}{peak_kib / 2**20:>10.2f}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", type=int, default=125)
    parser.add_argument("--side", type=int, default=1250)
    parser.add_argument("--scoring", default="max-quantile-50")
    parser.add_argument("--floors", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--folder", type=Path, help="kept; nothing in it is made twice")
    parser.add_argument("--stage", choices=_STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


def draw(path: Path, n_sections: int, side: int) -> None:
    """Write touching neurons that wander through the sections, with dark membranes: ``raw`` and ``labels``."""
    import h5py

    rng = np.random.default_rng(n_sections)
    rows, cols = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    n_cols = side // _CELL_PX[1] + 8
    chunks = {"chunks": (1, side, side), "compression": "gzip", "compression_opts": 1, "shuffle": True}
    with h5py.File(path, "w") as file:
        shape = (n_sections, side, side)
        raw = file.create_dataset("raw", shape, np.uint8, **chunks)
        labels = file.create_dataset("labels", shape, np.uint64, **chunks)
        for z in range(n_sections):
            y = (rows + 9 * np.sin(cols / 31 + z / 7) + 100) / _CELL_PX[0]
            x = (cols + 9 * np.sin(rows / 27 - z / 9) + 100) / _CELL_PX[1]
            sides = zip((y, x), _CELL_PX, strict=True)
            rim = np.minimum(*(np.minimum(part % 1, 1 - part % 1) * px for part, px in sides))
            grey = np.where(rim < 2, 60, 170) + rng.normal(0, 14, (side, side))
            raw[z] = np.clip(grey, 0, 255).astype(np.uint8)
            labels[z] = y.astype(np.uint64) * np.uint64(n_cols) + x.astype(np.uint64)


def _measure(arguments: list[str]) -> tuple[float, int]:
    command = [sys.executable, __file__, *sys.argv[1:], *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{arguments[-1]} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def _do(given: argparse.Namespace) -> None:
    from wsi_dino.segmentation.neurons import affinity_learners
    from wsi_dino.segmentation.neurons.blending import Window, voxel_boxes
    from wsi_dino.segmentation.neurons.datasets import open_files
    from wsi_dino.segmentation.neurons.request import AffinitySpec, AgglomerationSpec, EmRequest
    from wsi_dino.segmentation.neurons.run import segment_neurons
    from wsi_dino.segmentation.neurons.stages import Told

    class Grey(affinity_learners.VoxelLearner):
        def windows(self, network: Any, grey: np.ndarray, *rest: Any) -> list[Window]:
            return [Window(box, _darker(grey[box])) for box in voxel_boxes(grey.shape, self._size, 0.5)]

    affinity_learners.make_learner = lambda request, *rest: Grey(request.affinities)
    request = EmRequest(
        given.folder / "run", "unet3d", affinities=AffinitySpec(steps=1), stage=given.stage,
        agglomeration=AgglomerationSpec(scoring=given.scoring), with_floors=given.floors,
    )  # fmt: skip
    pairs = [tuple(f"{given.folder / name}.h5:{key}" for key in ("raw", "labels")) for name in ("train", "test")]
    segment_neurons(request, open_files(*pairs, name="drawn"), Told(lambda text: None, lambda text, n: None, bool))


def _darker(grey: np.ndarray) -> Callable[[], np.ndarray]:
    def answer() -> np.ndarray:
        bright = np.clip((grey.astype(np.float32) - 50) / 130, 0, 1)
        before = [np.concatenate([bright.take([0], axis), bright.take(range(bright.shape[axis] - 1), axis)], axis)
                  for axis in range(3)]  # fmt: skip
        return np.stack([np.minimum(bright, item) for item in before])

    return answer


if __name__ == "__main__":
    main()
