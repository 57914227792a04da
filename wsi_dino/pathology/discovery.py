"""Which slides lie in a folder, and what they are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from wsi_dino.errors import ConfigError

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom")
_DOUBLE_SUFFIXES = (".ome.tif", ".ome.tiff", ".btf", ".tar.gz")
_FOLDERS_WITH_PARTS = (".vms", ".vmu")
_HEAD_BYTES = 256 * 2**10
_SERIES_TAG = b"\x20\x00\x0e\x00UI"
_RUN_MARK = ".state"
_MASK_FOLDERS, _MASK_ENDING = {"mask", "masks"}, re.compile("(_evaluation)?_mask$", re.IGNORECASE)


@dataclass(frozen=True)
class SlideSource:
    """A slide that was found: its id, and the file (or the folder of one DICOM series) to open."""

    slide_id: str
    path: Path


def discover_slides(path: Path) -> list[SlideSource]:
    """Return the slides at `path`, a file or a folder with slides at any depth, sorted by slide_id.

    Files are taken by their extension; hidden ones are not, nor what belongs to another slide (the folder
    beside an MRXS file, the JPEGs of a VMS slide, masks), nor folders of earlier runs. A folder of DICOM files is
    one slide a series. A symlink counts as what it points to. The mask of slide S is S_mask or S_evaluation_mask,
    wherever it lies, and whatever is called like S in a folder ``masks``, as Camelyon16 has them.

    Raises:
        ConfigError: nothing is there, no slide is in it, or two slides would have one id.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"Looking for slides: there is no file or folder {path}.")
    if not path.is_dir():
        return [SlideSource(slide_id_of(path), path)]
    found = sorted(_without_masks(list(_walk(path)), path), key=lambda source: source.slide_id)
    if not found:
        wanted = " ".join(SLIDE_SUFFIXES + IMAGE_SUFFIXES + DICOM_SUFFIXES)
        raise ConfigError(f"Looking for slides in {path}: none, at any depth. Looked for files ending in {wanted}.")
    for first, second in pairwise(found):
        if first.slide_id == second.slide_id:
            raise ConfigError(
                f"Looking for slides: {first.path} and {second.path} have one slide_id, {first.slide_id!r}. "
                "Rename one of them, or leave one out: results are filed by slide_id."
            )
    return found


def slide_id_of(path: Path) -> str:
    """Return the file's name without its last extension, or without both of a usual double one.

    Examples:
        >>> slide_id_of(Path("a/TCGA-CR-7395.v2.svs")), slide_id_of(Path("S1.ome.tif")), slide_id_of(Path("S1.JPG"))
        ('TCGA-CR-7395.v2', 'S1', 'S1')
    """
    for suffix in _DOUBLE_SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return path.name if path.is_dir() else path.stem


def _without_masks(found: Sequence[SlideSource], top: Path) -> list[SlideSource]:
    apart = [_MASK_FOLDERS & {name.lower() for name in source.path.relative_to(top).parent.parts} for source in found]
    slides = {source.slide_id for source, masks in zip(found, apart, strict=True) if not masks}
    return [
        source
        for source, masks in zip(found, apart, strict=True)
        if not ((slide := _MASK_ENDING.sub("", source.slide_id)) in slides and (masks or slide != source.slide_id))
    ]


def _walk(top: Path) -> Iterator[SlideSource]:
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(top, followlinks=True):
        if os.path.realpath(folder) in visited or _RUN_MARK in subfolders:
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        companions = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".") and s not in companions)
        files = [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
        yield from _slides_of_folder(Path(folder), files)


def _slides_of_folder(folder: Path, files: list[Path]) -> Iterator[SlideSource]:
    parts = _parts_of_other_slides(files)
    for file in files:
        suffix = file.suffix.lower()
        if suffix in SLIDE_SUFFIXES + IMAGE_SUFFIXES and file.name not in parts and not file.is_dir():
            yield SlideSource(slide_id_of(file), file)
    yield from _dicom_series(folder, [file for file in files if file.suffix.lower() in DICOM_SUFFIXES])


def _parts_of_other_slides(files: list[Path]) -> set[str]:
    parts: set[str] = set()
    for index in (file for file in files if file.suffix.lower() in _FOLDERS_WITH_PARTS):
        text = _head(index).decode("latin-1")
        parts |= {file.name for file in files if f"={file.name}" in text}
    return parts


def _dicom_series(folder: Path, files: list[Path]) -> list[SlideSource]:
    first_of: dict[str, Path] = {}
    for file in files:
        first_of.setdefault(_series_uid(file), file)
    if len(first_of) == 1:
        return [SlideSource(folder.name, folder)]
    return [SlideSource(uid, file) for uid, file in first_of.items()]


def _series_uid(file: Path) -> str:
    """Return the SeriesInstanceUID, read from the head of a little-endian DICOM file; its stem where there is none."""
    head = _head(file)
    at = head.find(_SERIES_TAG)
    if at < 0:
        return file.stem
    start = at + len(_SERIES_TAG) + 2
    length = int.from_bytes(head[start - 2 : start], "little")
    return head[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError:  # whoever opens it as a slide will say why
        return b""
