"""Pictures kept while the data is at hand: sections with neurons, slices with features as colours."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import WsiDinoError
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.step import ResultKey, Step
from wsi_dino.provenance import write_atomically
from wsi_dino.run_folder import RunFolder, safe_name

FOLDER = "pictures"
RAW, TRUTH = "0-image", "1-truth"


def keep_snapshots(step: Step, entry: Entry, run: RunFolder) -> str:
    """Write the pictures of a finished step that are not there yet; say what went wrong, or nothing.

    A picture is no result: a command that is done stays done without it.
    """
    make = {"em": _em, "segment": _segment}.get(step.kind)
    if make is None:
        return ""
    try:
        for key, path in step.results.items():
            folder = snapshot_folder(run.path, key)
            wanted = folder / f"{safe_name(key.encoder)}.png"
            if not wanted.is_file():
                for name, pixels in make(entry, key, run.path / path).items():
                    _write(folder / f"{name}.png", pixels)
    except (WsiDinoError, OSError, KeyError, IndexError, ValueError) as error:
        return f"no picture of {step.key}: {str(error).splitlines()[0] if str(error) else error!r}"
    return ""


def snapshot_folder(run: Path, key: ResultKey) -> Path:
    """Return where the pictures of a dataset lie, an encoder a file, beside image and truth."""
    name = safe_name(key.dataset) + (f"-{safe_name(key.variant)}" if key.variant else "")
    return run / FOLDER / name


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    with write_atomically(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _em(entry: Entry, key: ResultKey, metrics: Path) -> Mapping[str, np.ndarray]:
    """Return the middle test section: grey values, true neurons, segments."""
    import h5py

    from wsi_dino.paper.kinds.em import em_dataset
    from wsi_dino.segmentation.neurons.pictures import section_pictures

    test = em_dataset(entry).test
    z = test.shape[0] // 2
    with h5py.File(metrics.parent / "segmentation.h5") as segments, h5py.File(
        metrics.parent / "affinities" / "test.h5"
    ) as affinities:  # fmt: skip
        shown = section_pictures(
            test.read_raw().voxels[z], affinities["affinities"][:, z], segments["main"][z], test.read_labels()[z]
        )
    return {RAW: shown.raw, TRUTH: shown.truth, safe_name(key.encoder): shown.segments}


def _segment(entry: Entry, key: ResultKey, metrics: Path) -> Mapping[str, np.ndarray]:
    """Return the slice with most foreground of the first case: grey values, and an encoder's features as colours."""
    from wsi_dino.segmentation.overlays import best_slice, enlarged, painted, principal_colours
    from wsi_dino.segmentation.prepared import open_tensors

    data = metrics.parent.parent
    stacks = sorted((data / "stacks").glob(f"{safe_name(key.encoder)}-*"), key=lambda path: path.stat().st_mtime_ns)
    if not stacks:  # a network that learns from voxels
        return {}
    stack = sorted(stacks[-1].glob("*.as-is.safetensors"))[0]
    prepared = data / "prepared" / stack.name.replace(".as-is", "")
    with open_tensors(prepared) as file:
        labels: Any = np.asarray(file.get_tensor("labels"))
        z = best_slice(labels, labels)
        grey = np.asarray(file.get_slice("grey")[:, z])
    with open_tensors(stack) as file:
        names = sorted(file.keys())
        sizes = [file.get_slice(name).get_shape()[-1] for name in names]
        finest = [name for name, size in zip(names, sizes, strict=True) if size == max(sizes)][-1]
        maps = np.asarray(file.get_slice(finest)[z : z + 1], np.float32)[0]
    maps = _of_slice(maps, labels.shape[1:])
    image = np.repeat(grey[0][..., None], 3, -1)
    return {
        RAW: enlarged(image, (1, 1)), TRUTH: enlarged(painted(image, labels[z]), (1, 1)),
        safe_name(key.encoder): enlarged(principal_colours(maps), (1, 1)),
    }  # fmt: skip


def _of_slice(maps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the cells ``(channels, rows, columns)`` that cover the slice, not what fills the square beside it."""
    rows, columns = (min(n, math.ceil(n * side / max(shape))) for n, side in zip(maps.shape[1:], shape, strict=True))
    return maps[:, :rows, :columns]
