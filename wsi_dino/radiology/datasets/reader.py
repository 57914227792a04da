"""Which data sets can be read: every file of this folder that defines ``READER``, and any table of the user's own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.radiology.datasets.image_set import ImageSet
from wsi_dino.radiology.datasets.volume_row import VolumeTable

AUTO, FOLDS = "auto", "folds"
Holds = Literal["images", "volumes"]


@dataclass(frozen=True)
class DataRequest:
    """What may be chosen when a data set is read.

    Attributes:
        labels: those to learn; none for all.
        baselines: columns of numbers to be judged beside, of a table alone.
        split: ``auto`` (the first of the reader's own, else folds), ``folds``, or one of the reader's own.
        release: ``auto``, or one of the reader's.
        drop_duplicates: of a table: leave out rows that say what an earlier row says.
    """

    labels: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    split: str = AUTO
    release: str = AUTO
    drop_duplicates: bool = False


@dataclass(frozen=True)
class DatasetReader:
    """How a published data set is read.

    Attributes:
        name: of ``--dataset``.
        holds: what a row is of.
        title: what it is, in one line.
        read: folder and request to an `ImageSet` or a `VolumeTable`, with all labels; its ``split`` is ``folds`` or one
            of `splits`, never ``auto``.
        splits: of the data set's own, the usual one first.
        releases: of its files, where there are several; ``auto`` is always one.
    """

    name: str
    holds: Holds
    title: str
    read: Callable[[Path, DataRequest], ImageSet | VolumeTable]
    splits: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()


@cache
def dataset_readers(holds: Holds) -> Mapping[str, DatasetReader]:
    """Return the readers of data sets of images or of volumes by name.

    Examples:
        >>> sorted(dataset_readers("images")), sorted(dataset_readers("volumes"))
        (['nih14', 'rsna'], ['ct-rate'])
    """
    package = importlib.import_module("wsi_dino.radiology.datasets")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found = [module.READER for module in modules if hasattr(module, "READER")]
    return {reader.name: reader for reader in sorted(found, key=lambda one: one.name) if reader.holds == holds}


def read_images(dataset: str, root: Path, request: DataRequest) -> ImageSet:
    """Read a data set of images: a registered one by its name, else the table of that path.

    Raises:
        ConfigError: there is no such data set or table, or it has no such split or label.
        CohortError: a file of it is missing or wrong.
    """
    reader = _chosen("images", dataset, request)
    if reader is None:
        from wsi_dino.radiology.datasets.image_table import read_image_table

        images = read_image_table(Path(dataset), root, labels=request.labels, drop_duplicates=request.drop_duplicates)
    else:
        read = reader.read(root, _settled(reader, request))
        assert isinstance(read, ImageSet)
        images = read.with_labels(request.labels) if request.labels else read
    return replace(images, subsets=None, scheme="") if request.split == FOLDS else images


def read_volumes(dataset: str, root: Path, request: DataRequest) -> VolumeTable:
    """Read a data set of volumes; see `read_images`."""
    reader = _chosen("volumes", dataset, request)
    if not root.is_dir():
        raise ConfigError(f"--root {root} is not a folder.")
    if reader is None:
        from wsi_dino.radiology.datasets.volume_table import read_volume_table

        table = read_volume_table(
            Path(dataset),
            root,
            labels=request.labels,
            baselines=request.baselines,
            drop_duplicates=request.drop_duplicates,
        )
    else:
        if request.baselines:
            raise ConfigError(f"--baseline names a column of a table of your own; {dataset} has none.")
        read = reader.read(root, _settled(reader, request))
        assert isinstance(read, VolumeTable)
        table = read.with_labels(request.labels) if request.labels else read
    return table.without_subsets() if request.split == FOLDS else table


def _settled(reader: DatasetReader, request: DataRequest) -> DataRequest:
    return replace(request, split=(*reader.splits, FOLDS)[0]) if request.split == AUTO else request


def _chosen(holds: Holds, dataset: str, request: DataRequest) -> DatasetReader | None:
    """Return the reader of that name, None for a table; refuse what it does not have."""
    known = dataset_readers(holds)
    reader = known.get(dataset)
    if reader is None and not Path(dataset).is_file():
        near = nearest_name(dataset, known)
        raise ConfigError(f"--dataset {dataset}: expected {', '.join(known)} or a table that is there.{near}")
    splits = (AUTO, *(() if reader is None else reader.splits), FOLDS)
    releases = (AUTO, *(() if reader is None else reader.releases))
    for option, asked, allowed in (("split", request.split, splits), ("release", request.release, releases)):
        if asked not in allowed:
            near = nearest_name(asked, allowed)
            raise ConfigError(f"--{option} {asked}: data set {dataset} has {', '.join(allowed)}.{near}")
    return reader
