"""HECKTOR 2022: head and neck tumours, CT and PET on grids of their own, labels on the CT's."""

from __future__ import annotations

from pathlib import Path

from wsi_dino.errors import ConfigError
from wsi_dino.segmentation.case import Case, Channel, ChannelFile, SegmentationDataset
from wsi_dino.segmentation.datasets.json_folder import nifti_files, stem
from wsi_dino.segmentation.datasets.nnunet import DEFAULT_SUV_WINDOW

CHANNELS = (Channel("ct", "ct", (-160.0, 240.0)), Channel("pet", "pet", DEFAULT_SUV_WINDOW))
CLASSES = {1: "GTVp", 2: "GTVn"}
N_TRAINING = 524


def open_hecktor(root: Path) -> SegmentationDataset:
    """Return the labelled cases: ``imagesTr/CHUM-001__CT.nii.gz``, ``..__PT.nii.gz``, ``labelsTr/CHUM-001.nii.gz``.

    Args:
        root: ``hecktor2022_training``, or the folder it lies in.

    Raises:
        ConfigError: no case is found.
    """
    folder = root / "hecktor2022_training" if (root / "hecktor2022_training").is_dir() else root
    images = folder / "imagesTr"
    if not images.is_dir():
        raise ConfigError(f"Opening {root}: there is no imagesTr in it. Is --root hecktor2022_training?")
    ids = sorted({stem(path).split("__")[0] for path in nifti_files(images) if "__" in path.name})
    cases = tuple(_case(folder, case_id) for case_id in ids)
    if not cases:
        raise ConfigError(f"Opening {images}: no CASE__CT.nii.gz in it. Is it HECKTOR 2022?")
    remarks = () if len(cases) == N_TRAINING else (f"{len(cases)} labelled cases; the challenge gave {N_TRAINING}",)
    return SegmentationDataset(
        "hecktor2022", cases, CHANNELS, CLASSES, metric_sets=("hecktor",), by_patient=True, resample=True,
        remarks=remarks, published="HECKTOR 2022",
    )  # fmt: skip


def _case(folder: Path, case_id: str) -> Case:
    ct, pet = (folder / "imagesTr" / f"{case_id}__{kind}.nii.gz" for kind in ("CT", "PT"))
    label = folder / "labelsTr" / f"{case_id}.nii.gz"
    missing = [path for path in (ct, pet, label) if not path.is_file()]
    problem = f"{missing[0]} is not there." if missing else ""
    images = (ChannelFile(ct), ChannelFile(pet))
    return Case(case_id, case_id, images, label, grid=ChannelFile(ct), problem=problem)


OPENERS = {"hecktor2022": open_hecktor}
