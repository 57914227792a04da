"""A case made ready once: 8-bit grey channels and labels on one grid, in a file that is read in parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import VolumeError
from wsi_dino.provenance import write_atomically

_KEY = "wsi_dino"
_FOREGROUND_VOXELS = 2000


@dataclass(frozen=True)
class PreparedCase:
    """Where a prepared case lies and what is known of it without reading voxels.

    Attributes:
        path: ``.safetensors`` with ``grey`` uint8 ``(channels, z, y, x)``, ``labels`` uint8 ``(z, y, x)`` and
            ``foreground`` int32 ``(n, 3)``, some voxels of each class.
        shape: (z, y, x).
        spacing_mm: (z, y, x).
        n_channels: of ``grey``.
        has_labels: whether it was prepared with a label map.
        fingerprint: of the files it came from and how it was prepared.
    """

    path: Path
    case_id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    n_channels: int
    has_labels: bool = True
    fingerprint: str = ""

    @classmethod
    def of_row(cls, path: Path, row: dict[str, Any]) -> Self:
        """Return the case that `write_prepared` described."""
        z, y, x = row["shape"]
        a, b, c = row["spacing_mm"]
        return cls(path, row["case_id"], (z, y, x), (a, b, c), row["n_channels"], row["has_labels"], row["fingerprint"])

    @property
    def extent_mm(self) -> float:
        """The longer side of a slice."""
        return max(n * mm for n, mm in zip(self.shape[1:], self.spacing_mm[1:], strict=True))

    def grey(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Return slices of the channels, uint8 ``(channels, n, y, x)``."""
        with self._opened() as file:
            return np.asarray(file.get_slice("grey")[:, start:stop])

    def labels(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Return slices of the labels, uint8 ``(n, y, x)``."""
        with self._opened() as file:
            return np.asarray(file.get_slice("labels")[start:stop])

    def foreground(self) -> npt.NDArray[np.int32]:
        """Return voxels of every class, int32 ``(n, 3)``, so many of each as there are, up to a limit."""
        with self._opened() as file:
            return np.asarray(file.get_tensor("foreground"))

    def _opened(self) -> Any:
        return open_tensors(self.path)


def open_tensors(path: Path) -> Any:
    """Open a safetensors file for reading numpy arrays in parts.

    Raises:
        VolumeError: it is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise VolumeError(f"Opening {path}: missing or broken ({error}). Run the same command again.") from error


def write_tensors(path: Path, tensors: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write arrays with facts in the header, atomically.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save

    content = save(tensors, metadata={_KEY: json.dumps(facts, sort_keys=True)})
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def write_prepared(
    path: Path,
    case_id: str,
    grey: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8] | None,
    spacing_mm: tuple[float, float, float],
) -> dict[str, Any]:
    """Write a case and return what `PreparedCase.of_row` needs."""
    shown = np.zeros(grey.shape[1:], np.uint8) if labels is None else labels
    row = {
        "case_id": case_id, "shape": list(grey.shape[1:]), "spacing_mm": list(spacing_mm),
        "n_channels": len(grey), "has_labels": labels is not None,
    }  # fmt: skip
    tensors: dict[str, np.ndarray] = {"grey": grey, "labels": shown, "foreground": _some_of_each_class(shown)}
    write_tensors(path, tensors, row)
    values, counts = np.unique(shown, return_counts=True)
    voxels = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    return {**row, "voxels": voxels, "bytes": path.stat().st_size}


def _some_of_each_class(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    rng = np.random.default_rng(0)
    picked = [np.zeros((0, 3), np.int32)]
    for value in np.unique(labels[labels > 0]):
        voxels = np.argwhere(labels == value).astype(np.int32)
        picked.append(voxels[rng.permutation(len(voxels))[:_FOREGROUND_VOXELS]])
    return np.concatenate(picked)
