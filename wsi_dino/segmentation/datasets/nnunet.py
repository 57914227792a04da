"""A folder in the form of nnU-Net v2: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, dataset.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError
from wsi_dino.segmentation.case import Case, Channel, ChannelFile, SegmentationDataset
from wsi_dino.segmentation.datasets.json_folder import (
    foreground_classes,
    nifti_files,
    read_dataset_json,
    stem,
)

_CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
DEFAULT_CT_WINDOW = (-160.0, 240.0)
DEFAULT_SUV_WINDOW = (0.0, 15.0)
_PET_NAMES = ("pet", "suv", "pt")


def open_nnunet(root: Path) -> SegmentationDataset:
    """Return the labelled cases of a folder in nnU-Net's form, which is called by its own name.

    Channels named CT go through a window of -160 .. 240 HU, PET, PT or SUV through 0 .. 15, all others by z-score.

    Args:
        root: the folder with dataset.json.

    Raises:
        ConfigError: folder or dataset.json are missing or broken, or there are no cases.
    """
    content = read_dataset_json(root)
    named = content.get("channel_names") or content.get("modality") or {"0": "MRI"}
    channels = tuple(_channel(str(named[key])) for key in sorted(named, key=int))
    channels = _told_apart(channels)
    found = _channel_files(root / "imagesTr")
    cases = tuple(_case(root, case_id, files, len(channels)) for case_id, files in sorted(found.items()))
    if not cases:
        raise ConfigError(f"Opening {root}: no imagesTr/CASE_0000.nii.gz in it. Is it a folder in nnU-Net's form?")
    return SegmentationDataset(root.resolve().name, cases, channels, foreground_classes(root, content["labels"]))


def _channel(name: str) -> Channel:
    lower = name.lower()
    if lower == "ct" or lower.startswith("ct "):
        return Channel("ct", "ct", DEFAULT_CT_WINDOW)
    if lower in _PET_NAMES:
        return Channel("pet", "pet", DEFAULT_SUV_WINDOW)
    return Channel(lower, "mri")


def _told_apart(channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
    """nnU-Net's name says how to normalise, so that two channels may bear one name."""
    names = [channel.name for channel in channels]
    return tuple(
        channel if names.count(channel.name) == 1 else Channel(f"{channel.name}{i}", channel.modality, channel.window)
        for i, channel in enumerate(channels)
    )


def _channel_files(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in nifti_files(folder) if folder.is_dir() else []:
        match = _CHANNEL_FILE.fullmatch(stem(path))
        if match is not None:
            found.setdefault(match["case"], {})[int(match["channel"])] = path
    return found


def case_of_channels(files: Sequence[Path]) -> str | None:
    """Return CASE of CASE_0000, CASE_0001 ... in this order, or None where the files are not called so.

    Examples:
        >>> case_of_channels([Path("a_0000.nii.gz"), Path("a_0001.nii.gz")]), case_of_channels([Path("a_0001.nii.gz")])
        ('a', None)
    """
    case = stem(files[0]).removesuffix("_0000")
    expected = [f"{case}_{number:04d}" for number in range(len(files))]
    return case if case and [stem(file) for file in files] == expected else None


def by_case(files: Sequence[Path]) -> list[list[Path]] | None:
    """Return the channels of each case in order, or None where not every name ends in the number of a channel."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(files):
        match = _CHANNEL_FILE.fullmatch(stem(file))
        if match is None:
            return None
        groups.setdefault(match["case"], []).append(file)
    return list(groups.values())


def _case(root: Path, case_id: str, files: dict[int, Path], n_channels: int) -> Case:
    missing: list[Any] = [index for index in range(n_channels) if index not in files]
    labels = [path for ending in (".nii.gz", ".nii") if (path := root / "labelsTr" / f"{case_id}{ending}").is_file()]
    problem = ""
    if missing:
        problem = f"imagesTr lacks {case_id}_{missing[0]:04d}.nii.gz; dataset.json names {n_channels} channels."
    elif not labels:
        problem = f"labelsTr/{case_id}.nii.gz is not there."
    images = tuple(ChannelFile(files[index]) for index in range(n_channels) if index in files)
    return Case(case_id, case_id, images, labels[0] if labels else None, problem=problem)


OPENERS = {"nnunet": open_nnunet}
