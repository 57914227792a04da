"""Folders of small volumes in the forms of public datasets, with their quirks, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RAS = np.eye(4)


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write ``(x, y, z)`` or ``(x, y, z, channel)`` as NIfTI."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, RAS if affine is None else affine), path)
    return path


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Return a bool ball."""
    grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return np.sqrt((grid**2).sum(0)) <= radius


def drawn_case(seed: int, shape: tuple[int, int, int] = (26, 30, 8)) -> tuple[np.ndarray, np.ndarray]:
    """Return an image ``(x, y, z)`` with a bright and a dark ball at places of their own, and labels 1 and 2."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 4, shape)
    centres = rng.uniform([6, 6, 2], [12, 23, 5]), rng.uniform([15, 6, 2], [20, 23, 5])
    labels = np.zeros(shape, np.uint8)
    for value, (centre, grey) in enumerate(zip(centres, (190, 20), strict=True), start=1):
        inside = ball(shape, tuple(centre), 4.5)
        labels[inside], image[inside] = value, grey + rng.normal(0, 4, int(inside.sum()))
    return image.astype(np.float32), labels


def make_msd(
    root: Path, folder: str = "Task04_Hippocampus", stem: str = "hippocampus", n_cases: int = 10, *, channels: int = 1
) -> Path:
    """Write a Decathlon task of drawn cases: names with and without padding, macOS junk, float labels in one."""
    task = root / folder
    training = []
    for number in range(1, n_cases + 1):
        image, labels = drawn_case(number)
        name = f"{stem}_{number}.nii.gz"
        stacked = image if channels == 1 else np.stack([image + 10 * c for c in range(channels)], -1)
        write_volume(task / "imagesTr" / name, stacked)
        write_volume(task / "labelsTr" / name, labels.astype(np.float32) if number == 2 else labels)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    for part in ("imagesTr", "labelsTr"):
        (task / part / f"._{stem}_1.nii.gz").write_bytes(b"\0\5\x16\7 macOS")
    content = {
        "name": folder, "relase": "1.0", "tensorImageSize": "3D" if channels == 1 else "4D",
        "modality": {str(i): ("MRI" if channels == 1 else f"m{i}") for i in range(channels)},
        "labels": {"0": "background", "1": "bright", "2": "dark"}, "numTraining": n_cases, "numTest": 7,
        "training": training[::-1], "test": ["./imagesTs/never_there.nii.gz"],
    }  # fmt: skip
    (task / "dataset.json").write_text(json.dumps(content))
    return task


def make_autopet(root: Path) -> Path:
    """Write AutoPET-II: two studies of one patient, an id that begins another, an empty truth, a case without SUV."""
    folder = root / "FDG-PET-CT-Lesions"
    affine = np.diag([-4.0, -4.0, 3.0, 1.0])
    studies = {
        "PETCT_0a": ["01-02-2003-NA-PET CT whole body-00001", "05-06-2004-NA-PET CT-00002"],
        "PETCT_0a1": ["01-02-2003-NA-PET CT-00003"], "PETCT_1b": ["01-02-2003-NA-PET CT-00004"],
        "PETCT_2c": ["01-02-2003-NA-PET CT-00005"], "PETCT_3d": ["01-02-2003-NA-PET CT-00006"],
    }  # fmt: skip
    seed = 0
    for patient, names in studies.items():
        for name in names:
            seed += 1
            image, labels = drawn_case(seed)
            study = folder / patient / name
            write_volume(study / "CTres.nii.gz", (image * 5 - 900).astype(np.int16), affine)
            write_volume(study / "SEG.nii.gz", (labels == 1).astype(np.uint8) * (patient != "PETCT_1b"), affine)
            if patient != "PETCT_3d":
                write_volume(study / "SUV.nii.gz", np.where(labels == 1, 8.0, 1.0).astype(np.float32), affine)
    return folder


def make_hecktor(root: Path, n_cases: int = 6) -> Path:
    """Write HECKTOR 2022: PET on a coarser, shifted grid of its own; the last case has no GTVn."""
    folder = root / "hecktor2022_training"
    ct_affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    ct_affine[:3, 3] = (13.0, 15.0, -5.0)
    for number in range(1, n_cases + 1):
        image, labels = drawn_case(number)
        name = f"CHUM-{number:03d}"
        if number == n_cases:
            labels[labels == 2] = 0
        write_volume(folder / "imagesTr" / f"{name}__CT.nii.gz", image - 100, ct_affine)
        write_volume(folder / "labelsTr" / f"{name}.nii.gz", labels, ct_affine)
        pet_affine = np.diag([4.0, 4.0, 4.0, 1.0])
        pet_affine[:3, 3] = (-20.0, -20.0, -10.0)
        write_volume(folder / "imagesTr" / f"{name}__PT.nii.gz", ramp((12, 12, 12), pet_affine), pet_affine)
    return folder


def ramp(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Return values that are ``x + 2 y + 3 z + 200`` of a voxel's place in mm, whatever the grid."""
    places = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    return (places @ np.array([1.0, 2.0, 3.0]) + 200).reshape(shape).astype(np.float32)
