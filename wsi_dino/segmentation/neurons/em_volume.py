"""A part of an EM volume: raw sections with their neuron ids, checked to belong together."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wsi_dino.errors import VolumeError
from wsi_dino.provenance import fingerprint, slide_fingerprint
from wsi_dino.segmentation.neurons.array_file import ArrayFile, open_array
from wsi_dino.segmentation.neurons.neuron_ids import read_ids

RAW_KEYS = ("volumes/raw", "main", "raw", "stack", "data")
LABEL_KEYS = ("volumes/labels/neuron_ids", "main", "labels", "stack", "seg", "data")
_BLANK_STD = 1.0
_WHITE = 255


@dataclass(frozen=True)
class EmSource:
    """Where a subset lies: sections of a raw file and of its labels.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        raw, labels: the files.
        sections: first and last + 1, counted in the labels.
        origin: of the labels in the raw volume, voxels (z, y, x).
        repair: whether blank sections are replaced by their neighbours.
        clips: whether grey values above 255 are taken for 255.
    """

    name: str
    raw: ArrayFile
    labels: ArrayFile
    sections: tuple[int, int]
    origin: tuple[int, int, int] = (0, 0, 0)
    repair: bool = False
    clips: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        return self.sections[1] - self.sections[0], *self.labels.shape[1:]

    @property
    def resolution_nm(self) -> tuple[float, float, float] | None:
        """Of a voxel (z, y, x), where a file tells."""
        return self.raw.resolution_nm or self.labels.resolution_nm

    def fingerprint(self) -> str:
        """Return what changes with the files' content or the sections taken."""
        # a folder of the same name beside a volume is no part of it; it may be the run
        files = [(slide_fingerprint(file.path, with_companion=False), file.key) for file in (self.raw, self.labels)]
        return fingerprint(files, self.sections, self.origin, self.repair, *(["clips"] if self.clips else []))

    def read_raw(self) -> RawVolume:
        """Return the sections as uint8 with remarks on what was found.

        Raises:
            VolumeError: grey values are not 8 bit, NaN, or all alike.
        """
        z, y, x = self.origin
        start, stop = (z + number for number in self.sections)
        out = np.empty(self.shape, np.uint8)
        n_clipped = 0
        for i in range(start, stop):
            section = self.raw.read_sections(i, i + 1)[0][y : y + out.shape[1], x : x + out.shape[2]]
            if self.clips and section.dtype.kind in "uif":
                n_clipped += int((section > _WHITE).sum())
                section = np.where(section > _WHITE, _WHITE, section)
            out[i - start] = _as_grey(section, self.raw, i)
        checked = _checked(self, out)
        if n_clipped:
            checked.remarks.append(f"{self.name}: {n_clipped} voxels above 255 taken for 255, as public code does")
        return checked

    def read_labels(self) -> npt.NDArray[np.uint32]:
        """Return the ids, 0 where there is no neuron; see `read_ids`."""
        return read_ids(self.labels, *self.sections)


@dataclass(frozen=True)
class RawVolume:
    """Grey values.

    Attributes:
        voxels: uint8 ``(z, y, x)``.
        remarks: what a reader of the results should know.
    """

    voxels: npt.NDArray[np.uint8]
    remarks: list[str] = field(default_factory=list)


def pair(name: str, raw: str, labels: str, *, repair: bool = False) -> EmSource:
    """Return raw and labels of one volume, whole.

    Labels smaller than raw are placed by the attribute ``offset`` in nm, as in CREMI's padded files.

    Raises:
        VolumeError: they do not fit together.
    """
    raw_file, label_file = open_array(raw, RAW_KEYS), open_array(labels, LABEL_KEYS)
    origin = _origin(raw_file, label_file)
    return EmSource(name, raw_file, label_file, (0, label_file.shape[0]), origin, repair)


def _origin(raw: ArrayFile, labels: ArrayFile) -> tuple[int, int, int]:
    a, b = raw.resolution_nm, labels.resolution_nm
    if a is not None and b is not None and not np.allclose(a, b, rtol=1e-3, atol=0):
        raise VolumeError(
            f"Pairing {raw.called} with {labels.called}: a voxel is {a} nm in the one and {b} nm in the other. "
            "Bring both to one grid, or mend the attribute `resolution`."
        )
    difference = np.subtract(labels.offset_nm, raw.offset_nm)
    if not difference.any():
        if raw.shape != labels.shape:
            raise VolumeError(
                f"Pairing {raw.called} {raw.shape} with {labels.called} {labels.shape}: shapes differ, and no "
                "attribute `offset` says where the labels lie. Crop one of them."
            )
        return 0, 0, 0
    resolution = labels.resolution_nm or raw.resolution_nm
    if resolution is None:
        raise VolumeError(f"Pairing {raw.called} with {labels.called}: an `offset` in nm but no `resolution`.")
    voxels = difference / np.asarray(resolution)
    origin = np.rint(voxels).astype(int)
    if not np.allclose(voxels, origin, atol=1e-3):
        raise VolumeError(f"Pairing {raw.called} with {labels.called}: the offset of {voxels} voxels is not whole.")
    if (origin < 0).any() or (origin + labels.shape > raw.shape).any():
        raise VolumeError(
            f"Pairing {raw.called} {raw.shape} with {labels.called} {labels.shape}: labels that begin at voxel "
            f"{tuple(origin.tolist())} reach beyond the raw volume."
        )
    return int(origin[0]), int(origin[1]), int(origin[2])


def _as_grey(section: np.ndarray, file: ArrayFile, index: int) -> np.ndarray:
    if section.dtype == np.uint8:
        return section
    where = f"Reading {file.called}, section {index}"
    if section.dtype.kind == "f" and not np.isfinite(section).all():
        raise VolumeError(f"{where}: {int((~np.isfinite(section)).sum())} voxels are NaN or infinite.")
    if section.dtype.kind not in "uif":
        raise VolumeError(f"{where}: expected grey values of 0 to 255, got {section.dtype}.")
    low, high = float(section.min()), float(section.max())
    if low < 0 or high > 255:
        raise VolumeError(
            f"{where}: expected grey values of 0 to 255, got {section.dtype} from {low:g} to {high:g}. "
            "Save the volume as 8 bit, all sections by one scale."
        )
    if section.dtype.kind == "f" and high <= 1 and (section != np.rint(section)).any():
        raise VolumeError(f"{where}: values of 0 to 1. Multiply the volume by 255 and save it as 8 bit.")
    return np.rint(section).astype(np.uint8)


def _checked(source: EmSource, voxels: npt.NDArray[np.uint8]) -> RawVolume:
    blank = [i for i, section in enumerate(voxels) if section.std() < _BLANK_STD]
    if len(blank) == len(voxels):
        raise VolumeError(f"Reading {source.raw.called}: every section of {source.name} has one grey value alone.")
    remarks = []
    if blank:
        numbers = ", ".join(str(i + source.sections[0] + source.origin[0]) for i in blank)
        told = "replaced by their neighbours" if source.repair else "kept as they are (--repair replaces them)"
        remarks.append(f"{source.name}: sections {numbers} are blank; {told}")
        if source.repair:
            _repair(voxels, blank)
    return RawVolume(voxels, remarks)


def _repair(voxels: npt.NDArray[np.uint8], blank: list[int]) -> None:
    """Put the mean of the nearest good sections, weighted by nearness, in the place of blank ones."""
    good = np.array([i for i in range(len(voxels)) if i not in set(blank)])
    for i in blank:
        below, above = good[good < i], good[good > i]
        if not len(below) or not len(above):
            voxels[i] = voxels[good[np.abs(good - i).argmin()]]
            continue
        a, b = int(below[-1]), int(above[0])
        share = (i - a) / (b - a)
        voxels[i] = np.rint(voxels[a] * (1 - share) + voxels[b] * share).astype(np.uint8)
