"""What segmenting costs: a large volume from file to label map, and an epoch beside MONAI's U-Net at equal input.

Draws its volumes itself. Each row is a process of its own: seconds as the command reports them, CPU seconds and peak
resident set as the system does. Decoders are trained for two epochs, which is enough to time them and for nothing else.
Run: python benchmarks/segmentation.py [--encoder efficientnet-lite0] [--shape 300 512 512] [--only inference]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_TRAINING_SHAPE = (36, 50, 36)  # of a hippocampus of the Medical Segmentation Decathlon
_EPOCHS = 2


@dataclass(frozen=True)
class Measured:
    """One command: what it printed, and what it took."""

    answer: dict[str, Any]
    wall_s: float
    cpu_s: float
    peak_mib: float


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--weights", default=None, help="checkpoint of the encoder")
    parser.add_argument("--decoder", default="conv3d")
    parser.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512), help="slices, rows, columns")
    parser.add_argument("--cases", type=int, default=10, help="drawn to train on, at least 4")
    parser.add_argument("--only", choices=("inference", "training"), default=None)
    given = parser.parse_args()
    encoder = ["--encoder", given.encoder, *(["--weights", given.weights] if given.weights else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.only != "inference":
            _say_training(folder / "small", encoder, given.decoder, given.cases)
        if given.only != "training":
            _say_inference(folder / "large", encoder, given.decoder, tuple(given.shape))


def _say_training(folder: Path, encoder: list[str], decoder: str, n_cases: int) -> None:
    _draw(folder, n_cases, _TRAINING_SHAPE)
    print(f"training: volumes of {_TRAINING_SHAPE}, {n_cases} drawn, half of them to train on")
    frozen = _segment(folder, [*encoder, "--decoder", decoder, "--views", "1"])
    voxels = _segment(folder, ["--model", "monai-unet"])
    n_train = frozen.answer["folds"][0]["n_train"]
    epoch, encoding = (frozen.answer["seconds"][key] for key in ("per_epoch", "encoding_per_volume_and_view"))
    print(f"{'':<34}{'s an epoch':>11}{'peak MiB':>10}")
    print(f"{decoder + ' on stored maps':<34}{epoch:>11.2f}{frozen.peak_mib:>10.0f}")
    anew = epoch + n_train * encoding
    print(f"{decoder + ', encoding anew each epoch':<34}{anew:>11.2f}{'':>10}   x {anew / epoch:.1f}")
    print(f"{'monai-unet on voxels':<34}{voxels.answer['seconds']['per_epoch']:>11.2f}{voxels.peak_mib:>10.0f}")


def _say_inference(folder: Path, encoder: list[str], decoder: str, shape: tuple[int, ...]) -> None:
    _draw(folder, 4, (8, *shape[1:]))
    trained = _segment(folder, [*encoder, "--decoder", decoder, "--views", "1", "--no-predictions", "--epochs", "1"])
    _write(folder / "new.nii.gz", _volume(shape, seed=9)[0], "int16")
    weights = encoder[2:]
    files = [trained.answer["folder"], "new.nii.gz", "--output", "labels", *weights]
    found = _measure(folder, ["segment-predict", *files])
    print(
        f"inference: {' x '.join(map(str, shape))}: {found.wall_s:.0f} s ({found.cpu_s:.0f} s of CPU), "
        f"peak {found.peak_mib:.0f} MiB"
    )


def _segment(folder: Path, options: list[str]) -> Measured:
    given = ["segment", "--dataset", "nnunet", "--root", "cases", "--run", "run", "--folds", "2", "--fold", "0"]
    return _measure(folder, [*given, "--epochs", str(_EPOCHS), *options])


def _measure(folder: Path, arguments: list[str]) -> Measured:
    import time

    command = [sys.executable, "-m", "wsi_dino.cli", "radiology", *arguments, "--json"]
    began = time.perf_counter()
    with (folder / "out.json").open("wb") as out, (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "log.txt").read_text())
    cpu_s = usage.ru_utime + usage.ru_stime
    return Measured(json.loads((folder / "out.json").read_text()), wall_s, cpu_s, usage.ru_maxrss / 1024)


def _draw(folder: Path, n_cases: int, shape: tuple[int, ...]) -> None:
    """Write cases in nnU-Net's form: a bright and a dark ball in noise."""
    for name in ("imagesTr", "labelsTr"):
        (folder / "cases" / name).mkdir(parents=True)
    for number in range(n_cases):
        image, labels = _volume(shape, seed=number)
        _write(folder / "cases" / "imagesTr" / f"case{number:02d}_0000.nii.gz", image, "int16")
        _write(folder / "cases" / "labelsTr" / f"case{number:02d}.nii.gz", labels, "uint8")
    facts = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "bright": 1, "dark": 2}, "numTraining": n_cases,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "cases" / "dataset.json").write_text(json.dumps(facts))


def _volume(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(40, 30, shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    places = np.ogrid[tuple(slice(side) for side in shape)]
    for value, grey, part in ((1, 120, 0.35), (2, -80, 0.65)):
        away = sum(((at - side * part) / (side * 0.15)) ** 2 for at, side in zip(places, shape, strict=True))
        labels[away < 1] = value
        image[away < 1] += grey
    return image, labels


def _write(path: Path, volume: np.ndarray, dtype: str) -> None:
    import nibabel

    turned = np.ascontiguousarray(volume.transpose(2, 1, 0)).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(turned, np.diag([0.8, 0.8, 1.5, 1.0])), path)


if __name__ == "__main__":
    main()
