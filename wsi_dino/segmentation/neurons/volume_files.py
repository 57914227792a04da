"""Affinities, fragments, merges and segmentations on disk; written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import VolumeError
from wsi_dino.provenance import storage_errors, write_hdf5_atomically
from wsi_dino.segmentation.neurons.agglomeration import Merges
from wsi_dino.segmentation.neurons.optional_libraries import require
from wsi_dino.segmentation.prepared import open_tensors, write_tensors

_CHUNK_PX = 256


@contextmanager
def writing_volume(
    path: Path, key: str, shape: Sequence[int], dtype: Any, attributes: dict[str, Any]
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Yield what writes sections from a number on; the file appears when all is done.

    Args:
        path: of the HDF5 file.
        key: of its one dataset.
        shape: ``(z, y, x)`` or ``(channels, z, y, x)``.
        dtype: of voxels.
        attributes: of the dataset.
    """
    sides = [min(side, _CHUNK_PX) for side in shape[-2:]]
    chunks = (*shape[:-3], 1, *sides)
    with write_hdf5_atomically(path) as file:
        dataset = file.create_dataset(
            key, shape=tuple(shape), dtype=dtype, chunks=chunks, compression="gzip", compression_opts=1,
            shuffle=True, fletcher32=True,
        )  # fmt: skip
        dataset.attrs.update(attributes)

        def write(first: int, sections: np.ndarray) -> None:
            dataset[..., first : first + sections.shape[-3], :, :] = sections

        yield write


def read_volume(path: Path, key: str) -> np.ndarray:
    """Return a dataset whole.

    Raises:
        VolumeError: the file is missing or broken.
    """
    with _opened(path, key) as dataset:
        return np.asarray(dataset[()])


@contextmanager
def _opened(path: Path, key: str) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file[key]
    except (OSError, KeyError) as error:
        raise VolumeError(
            f"Reading {path}: missing or broken ({error}). Remove it and run the same command again."
        ) from error


def read_section(path: Path, key: str, z: int) -> np.ndarray:
    """Return section `z` of ``(..., z, y, x)``; raises as `read_volume`."""
    with _opened(path, key) as dataset:
        return np.asarray(dataset[..., z, :, :])


def write_merges(path: Path, merges: Merges) -> None:
    """Write which segment each fragment belongs to, at each threshold."""
    write_tensors(path, {"thresholds": np.array(merges.thresholds), "segments": merges.segments}, {})


def read_merges(path: Path) -> Merges:
    """Read what `write_merges` wrote."""
    with open_tensors(path) as file:
        return Merges(tuple(file.get_tensor("thresholds").tolist()), file.get_tensor("segments"))


def write_segmentation(
    path: Path, fragments: npt.NDArray[np.uint32], segments: npt.NDArray[np.uint32], attributes: dict[str, Any]
) -> None:
    """Write ids of segments: HDF5, key ``main``, uint32, as napari, neuroglancer and the field's own tools read it."""
    with writing_volume(path, "main", fragments.shape, np.uint32, attributes) as write:
        for z, section in enumerate(fragments):
            write(z, segments[section][None])


def write_zarr(
    folder: Path, fragments: npt.NDArray[np.uint32], segments: npt.NDArray[np.uint32], attributes: dict[str, Any]
) -> None:
    """Write ids of segments as a Zarr array (version 2), whole or not at all.

    Raises:
        ConfigError: zarr is not installed.
    """
    zarr = require("zarr", "zarr")
    temporary = folder.with_name(f".{folder.name}.writing")
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        chunks = (1, *(min(side, _CHUNK_PX) for side in fragments.shape[1:]))
        try:
            array = zarr.create_array(
                store=str(temporary), shape=fragments.shape, chunks=chunks, dtype="uint32", zarr_format=2,
                attributes=attributes,
            )  # fmt: skip
            for z, section in enumerate(fragments):
                array[z] = segments[section]
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
