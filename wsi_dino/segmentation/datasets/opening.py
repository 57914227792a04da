"""Datasets by name: a file of this folder that ends with `OPENERS` is all that one takes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import wsi_dino.segmentation.datasets as package
from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.segmentation.case import SegmentationDataset

Opener = Callable[[Path], SegmentationDataset]


@cache
def dataset_openers() -> dict[str, Opener]:
    """Return what opens the folder of each dataset, by name, sorted."""
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    openers = [pair for module in modules for pair in getattr(module, "OPENERS", {}).items()]
    return dict(sorted(openers))


def open_dataset(name: str, root: Path) -> SegmentationDataset:
    """Return the labelled cases of a dataset.

    Args:
        name: ``msd-task01`` .. ``msd-task10``, ``autopet2``, ``hecktor2022``, or ``nnunet`` for any folder in
            nnU-Net's form, which is then called by its own name.
        root: its folder.

    Raises:
        ConfigError: there is no such dataset, or the folder is not in its form.
    """
    openers = dataset_openers()
    if name not in openers:
        raise ConfigError(
            f"--dataset {name}: there is no such dataset.{nearest_name(name, list(openers))} Known: "
            f"{', '.join(openers)}."
        )
    return openers[name](root)
