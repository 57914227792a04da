"""A dataset written in nnU-Net v2's form, with our folds as its splits_final.json, so that it runs on just these."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError, VolumeError
from wsi_dino.provenance import write_atomically, write_json_atomically
from wsi_dino.run_folder import safe_name
from wsi_dino.segmentation.case import Case, SegmentationDataset
from wsi_dino.segmentation.case_reading import read_case
from wsi_dino.segmentation.folds import SegmentationFold
from wsi_dino.volumes.nifti_channels import write_image_like, write_labels_like

_NAME = re.compile(r"Dataset\d{3}_\w+")
# nnU-Net normalises by these names: CT by the foreground's percentiles, all else by z-score. AutoPET's own converter
# names both channels CT.
_NNUNET_CHANNEL = {"ct": "CT", "pet": "CT"}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: of the dataset.
        n_cases: written.
        failures: case ids and reasons.
    """

    folder: Path
    n_cases: int
    failures: tuple[dict[str, str], ...]


def export_nnunet(
    dataset: SegmentationDataset,
    folds: Sequence[SegmentationFold],
    folder: Path,
    advance: Callable[[str], None] = lambda case_id: None,
) -> Exported:
    """Write imagesTr, labelsTr, dataset.json and splits_final.json.

    nnU-Net reads splits_final.json from nnUNet_preprocessed/DATASET, where it is to be copied after planning. A single
    3D file is copied as it is; a channel of a 4D file, or one on another grid, is written anew. Labels become uint8.

    Args:
        dataset: to write.
        folds: of it.
        folder: ``DatasetNNN_Name``, as nnU-Net demands.
        advance: called after each case.

    Raises:
        ConfigError: the folder's name is not of that form.
        StorageError: the disk is full or the folder cannot be written.
    """
    if _NAME.fullmatch(folder.name) is None:
        raise ConfigError(f"Writing {folder}: nnU-Net wants a folder called DatasetNNN_Name, e.g. Dataset504_Hippo.")
    failures = []
    written: set[str] = set()
    for case in dataset.cases:
        try:
            _write_case(dataset, case, folder)
            written.add(case.case_id)
        except VolumeError as error:
            failures.append({"case_id": case.case_id, "message": str(error)})
        advance(case.case_id)
    write_json_atomically(folder / "dataset.json", _dataset_json(dataset, len(written)))
    splits = [{side: _names(getattr(fold, side), written) for side in ("train", "val")} for fold in folds]
    write_json_atomically(folder / "splits_final.json", splits)
    return Exported(folder, len(written), tuple(failures))


def _names(case_ids: Sequence[str], written: set[str]) -> list[str]:
    return [safe_name(case_id) for case_id in case_ids if case_id in written]


def _dataset_json(dataset: SegmentationDataset, n_cases: int) -> dict[str, Any]:
    names = {str(i): _NNUNET_CHANNEL.get(c.modality, c.name) for i, c in enumerate(dataset.channels)}
    values = list(dataset.classes)
    if values != list(range(1, len(values) + 1)):
        raise ConfigError(f"Writing {dataset.name}: nnU-Net wants labels 1, 2, 3 ...; these are {values}.")
    labels = {"background": 0, **{name: value for value, name in dataset.classes.items()}}
    return {"channel_names": names, "labels": labels, "numTraining": n_cases, "file_ending": ".nii.gz"}


def _write_case(dataset: SegmentationDataset, case: Case, folder: Path) -> None:
    volumes = read_case(case, dataset)
    name = safe_name(case.case_id)
    for index, (file, values) in enumerate(zip(case.images, volumes.channels, strict=True)):
        target = folder / "imagesTr" / f"{name}_{index:04d}.nii.gz"
        is_as_is = file.index is None and file.path.name.endswith(".nii.gz") and _is_on_grid(case, index, volumes)
        if is_as_is:
            with write_atomically(target) as temporary:
                shutil.copyfile(file.path, temporary)
        else:
            write_image_like(target, values, case.grid_file.path)
    assert volumes.labels is not None
    write_labels_like(folder / "labelsTr" / f"{name}.nii.gz", np.asarray(volumes.labels), case.grid_file.path)


def _is_on_grid(case: Case, index: int, volumes: Any) -> bool:
    return not any(remark.startswith(f"{case.images[index].path.name} resampled") for remark in volumes.remarks)
