"""Datasets by name."""

from __future__ import annotations

from pathlib import Path

from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.segmentation.case import SegmentationDataset
from wsi_dino.segmentation.datasets.autopet import open_autopet
from wsi_dino.segmentation.datasets.hecktor import open_hecktor
from wsi_dino.segmentation.datasets.msd import TASKS, open_msd
from wsi_dino.segmentation.datasets.nnunet import open_nnunet

NAMES = (*TASKS, "autopet2", "hecktor2022", "nnunet")


def open_dataset(name: str, root: Path) -> SegmentationDataset:
    """Return the labelled cases of a dataset.

    Args:
        name: ``msd-task01`` .. ``msd-task10``, ``autopet2``, ``hecktor2022``, or ``nnunet`` for any folder in
            nnU-Net's form, which is then called by its own name.
        root: its folder.

    Raises:
        ConfigError: there is no such dataset, or the folder is not in its form.
    """
    if name in TASKS:
        return open_msd(root, name)
    if name == "autopet2":
        return open_autopet(root)
    if name == "hecktor2022":
        return open_hecktor(root)
    if name == "nnunet":
        return open_nnunet(root, root.resolve().name)
    raise ConfigError(
        f"--dataset {name}: there is no such dataset.{nearest_name(name, NAMES)} Known: {', '.join(NAMES)}."
    )
