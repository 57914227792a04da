"""CT phantoms with known answers, and a small copy of CT-RATE with everything that is odd about the real one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from wsi_dino.radiology.datasets.ct_rate import LABELS

SPACING_MM = (2.5, 0.8, 0.8)


def chest_hu(random: np.random.Generator, *, effusion: bool = False, side: int = 32, n_slices: int = 6) -> np.ndarray:
    """Return HU ``(z, y, x)``, anterior up: a body with two lungs, a spine at the back; an effusion fills a lung.

    The patient's right lung, on the left of the picture, is the larger one, so that every flip shows.
    """
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    body = (x / 0.45) ** 2 + (y / 0.35) ** 2 < 1
    right = ((x + 0.2) / 0.15) ** 2 + (y / 0.22) ** 2 < 1
    left = ((x - 0.2) / 0.11) ** 2 + (y / 0.20) ** 2 < 1
    spine = (x / 0.06) ** 2 + ((y - 0.26) / 0.06) ** 2 < 1
    slices = np.full((n_slices, side, side), -1000.0)
    slices[:, body] = 40
    slices[:, right | left] = -850
    slices[:, spine] = 500
    if effusion:
        slices[:, (right | left) & (y > 0.0)] = 10
    slices += random.normal(0, 10, slices.shape)
    return np.rint(np.clip(slices, -1024, 3000)).astype(np.int16)


def write_nifti(
    path: Path, shown: np.ndarray, *, axes: str = "LPS", spacing_mm: tuple[float, float, float] = SPACING_MM,
    dtype: Any = None, slope: float | None = None, intercept: float = 0.0,
) -> Path:  # fmt: skip
    """Write ``(z, y, x)``, anterior up, so that the file's axes run as `axes` says; the place in space is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.asarray(shown).transpose(2, 1, 0)
    affine = np.diag([-spacing_mm[2], -spacing_mm[1], spacing_mm[0], 1.0])
    image = nibabel.Nifti1Image(voxels.astype(dtype or voxels.dtype), affine, dtype=dtype or voxels.dtype)
    wanted = nibabel.orientations.axcodes2ornt(axes)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
    image = image.as_reoriented(turn)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path


def write_dicom_series(folder: Path, shown: np.ndarray, *, series: str = "1.2.3", slope: float | None = 1.0,
                       intercept: Any = -1024.0, spacing_mm: tuple[float, float, float] = SPACING_MM,
                       **changes: Any) -> list[Path]:  # fmt: skip
    """Write HU ``(z, y, x)`` as one uncompressed file a slice, in names that do not follow the order."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for z, hu in enumerate(shown):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{series}.{z + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{(7 * z) % len(shown):03d}_{series}.dcm"
        head = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        head.SOPClassUID, head.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        head.Modality, head.SeriesInstanceUID, head.SeriesDescription = "CT", series, f"series {series}"
        head.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        head.ImagePositionPatient = [0, 0, spacing_mm[0] * z]
        head.PixelSpacing = [spacing_mm[1], spacing_mm[2]]
        head.Rows, head.Columns = hu.shape
        head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 16, 16, 15, 1
        head.SamplesPerPixel, head.PhotometricInterpretation = 1, "MONOCHROME2"
        own = intercept[z] if isinstance(intercept, list) else intercept
        if slope is not None:
            head.RescaleSlope, head.RescaleIntercept = slope, own
        for name, value in changes.items():
            setattr(head, name, value)
        head.PixelData = ((hu - own) / (slope or 1.0)).round().astype("<i2").tobytes()
        head.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def make_fake_ct_rate(root: Path, n_train: int = 24, n_valid: int = 10, seed: int = 0) -> dict[str, str]:
    """Write CT-RATE's layout with `n_train` and `n_valid` patients; "Pleural effusion" can be seen, the rest not.

    Odd as the real one: v1 files stored unsigned with slope 1, intercept -1024 in the metadata only and a spacing in
    the header that is wrong; a ``_fixed`` file in HU whose metadata row still says -1024; two reconstructions of one
    scan and two scans of one patient; a volume that shows no chest; label csv ``valid_`` but metadata
    ``validation_``; spacing as text ``"[0.8, 0.8]"``.

    Returns:
        Ids of the odd ones by what they are: ``original, fixed, reconstructions, no_chest``.
    """
    random = np.random.default_rng(seed)
    dataset = root / "dataset"
    odd: dict[str, str] = {}
    for part, metadata_part, n in (("train", "train", n_train), ("valid", "validation", n_valid)):
        labels, metadata = [], []
        for number in range(1, n + 1):
            targets = random.integers(0, 2, len(LABELS))
            targets[LABELS.index("Pleural effusion")] = number % 2
            names = [f"{part}_{number}_a_1"]
            names += [f"{part}_{number}_a_2"] if number == 2 else [f"{part}_{number}_b_1"] if number == 3 else []
            for name in names:
                hu = chest_hu(random, effusion=bool(number % 2))
                is_fixed = number == 4 and part == "train"
                _write_volume(dataset, part, name, hu, is_fixed=is_fixed)
                labels.append([f"{name}.nii.gz", *targets])
                metadata.append([f"{name}.nii.gz", "SIEMENS", "1", "-1024", "[0.8, 0.8]", "2.5", "Br40", len(hu)])
                odd |= {"fixed": name} if is_fixed else {}
        _write_csv(
            dataset / "multi_abnormality_labels" / f"{part}_predicted_labels.csv", ["VolumeName", *LABELS], labels
        )
        header = ["VolumeName", "Manufacturer", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing",
                  "ConvolutionKernel", "NumberofSlices"]  # fmt: skip
        _write_csv(dataset / "metadata" / f"{metadata_part}_metadata.csv", header, metadata)
    no_chest = "train_5_a_1"
    (dataset / "metadata" / "no_chest_train.txt").write_text(f"some/where/{no_chest}.nii.gz\n")
    return odd | {"original": "train_1_a_1", "reconstructions": "train_2_a", "no_chest": no_chest}


def _write_volume(dataset: Path, part: str, name: str, hu: np.ndarray, *, is_fixed: bool) -> None:
    patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
    if is_fixed:
        write_nifti(dataset / f"{part}_fixed" / patient / scan / f"{name}.nii.gz", hu, axes="RAS")
        return
    stored = (hu.astype(np.int32) + 1024).astype(np.uint16)
    write_nifti(dataset / part / patient / scan / f"{name}.nii.gz", stored, spacing_mm=(1.0, 1.0, 1.0))


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
