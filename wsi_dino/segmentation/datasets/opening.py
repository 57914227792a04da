"""Datasets by name: each opens in one file beside this one and stands once in `_OPENERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.segmentation.case import SegmentationDataset
from wsi_dino.segmentation.datasets.autopet import open_autopet
from wsi_dino.segmentation.datasets.hecktor import open_hecktor
from wsi_dino.segmentation.datasets.msd import TASKS, open_msd
from wsi_dino.segmentation.datasets.nnunet import open_nnunet

_OPENERS: dict[str, Callable[[Path], SegmentationDataset]] = {
    **{task: partial(open_msd, task=task) for task in TASKS},
    "autopet2": open_autopet,
    "hecktor2022": open_hecktor,
    "nnunet": lambda root: open_nnunet(root, root.resolve().name),
}
NAMES = tuple(_OPENERS)


def open_dataset(name: str, root: Path) -> SegmentationDataset:
    """Return the labelled cases of a dataset.

    Args:
        name: ``msd-task01`` .. ``msd-task10``, ``autopet2``, ``hecktor2022``, or ``nnunet`` for any folder in
            nnU-Net's form, which is then called by its own name.
        root: its folder.

    Raises:
        ConfigError: there is no such dataset, or the folder is not in its form.
    """
    if name not in _OPENERS:
        raise ConfigError(
            f"--dataset {name}: there is no such dataset.{nearest_name(name, NAMES)} Known: {', '.join(NAMES)}."
        )
    return _OPENERS[name](root)
