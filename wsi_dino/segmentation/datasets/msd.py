"""The ten tasks of the Medical Segmentation Decathlon as their archives unpack (CC-BY-SA 4.0)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError
from wsi_dino.segmentation.case import Case, Channel, ChannelFile, Modality, SegmentationDataset
from wsi_dino.segmentation.datasets.json_folder import (
    foreground_classes,
    inside,
    is_junk,
    read_dataset_json,
    stem,
)

_CT = (-160.0, 240.0)


@dataclass(frozen=True)
class MsdTask:
    """What is known of a task: its folder, the CT window of its foreground, how many cases its archive has."""

    folder: str
    n_training: int
    window: tuple[float, float] | None = None


# Windows: 0.5 and 99.5 percentile of foreground voxels, as MONAI's dynunet tutorial has them from nnU-Net.
TASKS: dict[str, MsdTask] = {
    "msd-task01": MsdTask("Task01_BrainTumour", 484),
    "msd-task02": MsdTask("Task02_Heart", 20),
    "msd-task03": MsdTask("Task03_Liver", 131, (-17, 201)),
    "msd-task04": MsdTask("Task04_Hippocampus", 260),
    "msd-task05": MsdTask("Task05_Prostate", 32),
    "msd-task06": MsdTask("Task06_Lung", 63, (-1024, 325)),
    "msd-task07": MsdTask("Task07_Pancreas", 281, (-96, 215)),
    "msd-task08": MsdTask("Task08_HepaticVessel", 303, (-3, 243)),
    "msd-task09": MsdTask("Task09_Spleen", 41, (-41, 176)),
    "msd-task10": MsdTask("Task10_Colon", 126, (-30, 165.82)),
}


@dataclass
class _Found:
    cases: list[Case] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def open_msd(root: Path, task: str) -> SegmentationDataset:
    """Return the labelled cases of a task.

    Args:
        root: the task's folder, or the folder it lies in.
        task: ``msd-task01`` .. ``msd-task10``.

    Raises:
        ConfigError: the folder or its dataset.json is missing, broken or of another task.
    """
    known = TASKS[task]
    folder = root / known.folder if (root / known.folder).is_dir() else root
    content = read_dataset_json(folder)
    channels = _channels(content.get("modality", {}), known)
    found = _cases(folder, content, len(channels))
    if len(found.cases) != known.n_training:
        found.remarks.append(f"{len(found.cases)} labelled cases; the published archive has {known.n_training}")
    return SegmentationDataset(
        task, tuple(found.cases), channels, foreground_classes(folder, content["labels"]),
        remarks=tuple(found.remarks), published=f"MSD {known.folder.partition('_')[0]}",
    )  # fmt: skip


def _channels(modalities: dict[str, str], task: MsdTask) -> tuple[Channel, ...]:
    names = [modalities[key] for key in sorted(modalities, key=int)] or ["MRI"]
    return tuple(_channel(name, task.window) for name in names)


def _channel(name: str, window: tuple[float, float] | None) -> Channel:
    modality: Modality = "ct" if name.lower() == "ct" else "mri"
    return Channel(name.lower(), modality, (window or _CT) if modality == "ct" else None)


def _cases(folder: Path, content: dict[str, Any], n_channels: int) -> _Found:
    found = _Found()
    for entry in content.get("training", []):
        image, label = inside(folder, str(entry["image"])), inside(folder, str(entry["label"]))
        if is_junk(image.name):
            continue
        case_id = stem(image)
        files = tuple(ChannelFile(image, index if n_channels > 1 else None) for index in range(n_channels))
        missing = next((path for path in (image, label) if not path.is_file()), None)
        problem = "" if missing is None else f"dataset.json names {missing}, which is not there."
        found.cases.append(Case(case_id, case_id, files, label, problem=problem))
    found.cases.sort(key=lambda case: case.case_id)
    if not found.cases:
        raise ConfigError(f"Opening {folder}: its dataset.json lists no training case.")
    return found


OPENERS = {task: partial(open_msd, task=task) for task in TASKS}
