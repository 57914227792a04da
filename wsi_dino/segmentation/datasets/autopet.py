"""AutoPET-II (FDG-PET-CT-Lesions of TCIA) and folders in its form: CTres, SUV and SEG of each study on one grid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wsi_dino.errors import ConfigError
from wsi_dino.segmentation.case import Case, Channel, ChannelFile, SegmentationDataset
from wsi_dino.segmentation.datasets.json_folder import is_junk
from wsi_dino.segmentation.datasets.nnunet import DEFAULT_SUV_WINDOW

_FILES = ("CTres.nii.gz", "SUV.nii.gz", "SEG.nii.gz")
CHANNELS = (Channel("ct", "ct", (-100.0, 250.0)), Channel("pet", "pet", DEFAULT_SUV_WINDOW))


def open_autopet(root: Path) -> SegmentationDataset:
    """Return all studies below `root`.

    A study is ``PATIENT/STUDY/{CTres,SUV,SEG}.nii.gz`` as published, its id ``PATIENT_STUDY``; or, for a patient
    with one study only, ``PATIENT/{CTres,SUV,SEG}.nii.gz`` with the patient's own id.

    Args:
        root: ``FDG-PET-CT-Lesions``, or the folder it lies in.

    Raises:
        ConfigError: no study is found.
    """
    if not root.is_dir():
        raise ConfigError(f"Opening a dataset: {root} is not a folder. Check --root.")
    folder = root / "FDG-PET-CT-Lesions"
    folder = folder if folder.is_dir() else root
    cases = tuple(sorted(_studies(folder), key=lambda case: case.case_id))
    if not cases:
        raise ConfigError(f"Opening {root}: no PATIENT/STUDY/SUV.nii.gz below it. Is --root FDG-PET-CT-Lesions?")
    return SegmentationDataset(
        "autopet2", cases, CHANNELS, {1: "lesion"}, metric_sets=("autopet",), by_patient=True, resample=True,
        published="AutoPET-II",
    )  # fmt: skip


def _studies(folder: Path) -> Iterator[Case]:
    for patient in sorted(path for path in folder.iterdir() if path.is_dir() and not is_junk(path.name)):
        if any((patient / file).exists() for file in _FILES):
            yield _case(patient.name, patient.name, patient)
            continue
        for study in sorted(path for path in patient.iterdir() if path.is_dir() and not is_junk(path.name)):
            yield _case(f"{patient.name}_{study.name}", patient.name, study)


def _case(case_id: str, patient_id: str, folder: Path) -> Case:
    missing = [file for file in _FILES if not (folder / file).is_file()]
    problem = f"{folder / missing[0]} is not there." if missing else ""
    ct, suv, seg = (folder / file for file in _FILES)
    return Case(case_id, patient_id, (ChannelFile(ct), ChannelFile(suv)), seg, grid=ChannelFile(suv), problem=problem)


OPENERS = {"autopet2": open_autopet}
