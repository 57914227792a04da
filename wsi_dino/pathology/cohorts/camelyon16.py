"""Camelyon16: 399 lymph node slides with and without metastases, 270 to train on, 129 to test."""

from __future__ import annotations

import re
from pathlib import Path

from wsi_dino.errors import CohortError
from wsi_dino.pathology.cohorts.cohort_table import (
    Check,
    CohortReader,
    CohortTable,
    Settings,
    some,
    with_partial_note,
)
from wsi_dino.pathology.cohorts.download import Download, Found, read_csv_lines

_COLUMNS = ("slide_id", "patient_id", "centre", "cohort", "official", "tumor", "path", "note")
_SUFFIXES = (".tif", ".tiff")
_MASKS = ("mask", "masks")
_REFERENCE = "testing/reference.csv"
_ID = re.compile(r"test_\d{3}")
_NAME_COLUMNS, _LABEL_COLUMNS = ("name", "slide_id", "image", "filename"), ("label", "type", "class")
_NOTE = (
    "Camelyon16 does not say which slides are of one patient: each slide counts as its own patient, so folds made "
    "within it may share patients. test_049 is left out (a duplicate)."
)
_LEFT_OUT = {
    "test_049": "a duplicate of another test slide",
    "normal_086": "not among the 270 published training slides",
}
# Test slides that hold a metastasis, as published; reference.csv must say the same.
TUMOR_TEST_NUMBERS = (
    1, 2, 4, 8, 10, 11, 13, 16, 21, 26, 27, 29, 30, 33, 38, 40, 46, 48, 51, 52, 61, 64, 65, 66, 68,
    69, 71, 73, 74, 75, 79, 82, 84, 90, 92, 94, 97, 99, 102, 104, 105, 108, 110, 113, 114, 116, 117, 121, 122,
)  # fmt: skip


def expected_slides() -> dict[str, str]:
    """Return the official place of each of the 399 slides, by its name.

    Examples:
        >>> len(expected_slides()), expected_slides()["tumor_001"]
        (399, 'training/tumor/tumor_001.tif')
    """
    places = {f"normal_{n:03}": "training/normal" for n in range(1, 161)}
    places |= {f"tumor_{n:03}": "training/tumor" for n in range(1, 112)}
    places |= {f"test_{n:03}": "testing/images" for n in range(1, 131)}
    return {name: f"{folder}/{name}.tif" for name, folder in places.items() if name not in _LEFT_OUT}


def read_camelyon16(folder: Path, settings: Settings) -> CohortTable:
    """Read Camelyon16 as downloaded.

    Slides to train on are labelled by their names, those to test on by ``testing/reference.csv``, with a
    header or without.

    Raises:
        CohortError: the folder or reference.csv is missing, does not name each test slide, or contradicts
            the published list.
    """
    download = Download(folder, "Camelyon16")
    labels = _read_reference(download.require(_REFERENCE, "reference.csv", what="the table of test labels"))
    expected = expected_slides()
    found = download.find_slides(expected, _SUFFIXES, _MASKS)
    rows = tuple(_row(name, found, labels, download) for name in expected if name in found.paths)
    counts = [("training, normal", "normal_", 159), ("training, tumor", "tumor_", 111), ("test", "test_", 129)]
    checks = [Check(what, n, sum(name.startswith(start) for name in found.paths)) for what, start, n in counts]
    tumor = sum(row["tumor"] == "tumor" and row["official"] == "test" for row in rows)
    checks.append(Check("test, tumor", len(TUMOR_TEST_NUMBERS), tumor))
    annotated = {slide.stem: download.find(_annotation_places(name)) for name, slide in found.paths.items()}
    regions = {slide_id: path for slide_id, path in annotated.items() if path is not None}
    return with_partial_note(
        CohortTable(
            _COLUMNS, rows, len(expected), tuple(found.missing), tuple(checks), tuple(_remarks(found)), regions=regions
        )
    )


def _annotation_places(name: str) -> list[str]:
    """Return where the XML of a slide may lie: as published, or without the folder of its archive."""
    side = "testing" if name.startswith("test_") else "training"
    return [f"{side}/lesion_annotations/{name}.xml", f"{side}/{name}.xml", f"lesion_annotations/{name}.xml"]


def _row(name: str, found: Found, labels: dict[str, str], download: Download) -> dict[str, str]:
    path = found.paths[name]
    is_test = name.startswith("test_")
    label = labels[name] if is_test else name.partition("_")[0]
    return {
        "slide_id": path.stem, "patient_id": path.stem, "centre": "", "cohort": "camelyon16",
        "official": "test" if is_test else "train", "tumor": label, "path": download.relative(path), "note": _NOTE,
    }  # fmt: skip


def _remarks(found: Found) -> list[str]:
    remarks = [
        f"{path.name} is left out: {_LEFT_OUT[path.stem.lower()]}."
        for path in found.others
        if path.stem.lower() in _LEFT_OUT
    ]
    if found.elsewhere:
        remarks.append(f"{len(found.elsewhere)} slides lie in other folders than the official ones; they are taken.")
    unknown = [p.name for p in found.others if p.stem.lower() not in _LEFT_OUT and not p.stem.lower().endswith("_mask")]
    if unknown:
        remarks.append(f"{len(unknown)} files are no slides of Camelyon16 and are left out: {some(unknown)}.")
    return remarks


def _read_reference(path: Path) -> dict[str, str]:
    """Return ``normal`` or ``tumor`` for each test slide."""
    lines = read_csv_lines(path)
    name_column, label_column = 0, 1
    if lines and not _ID.match(lines[0][1][0].lower()):
        header = [cell.lower() for cell in lines.pop(0)[1]]
        name_column = next((i for i, cell in enumerate(header) if cell in _NAME_COLUMNS), 0)
        label_column = next((i for i, cell in enumerate(header) if cell in _LABEL_COLUMNS), 1)
    labels: dict[str, str] = {}
    for line, cells in lines:
        if len(cells) <= max(name_column, label_column):
            raise CohortError(f"Reading {path}: line {line} has {len(cells)} cells, expected the slide and its label.")
        name, label = Path(cells[name_column]).stem.lower(), cells[label_column].lower()
        if label not in ("tumor", "normal") or not _ID.fullmatch(name):
            raise CohortError(
                f"Reading {path}: line {line}: expected e.g. test_001,Tumor or test_003,Normal, got "
                f"{cells[name_column]},{cells[label_column]}."
            )
        if labels.setdefault(name, label) != label:
            raise CohortError(f"Reading {path}: line {line}: {name} is {label} here and {labels[name]} further up.")
    _check_reference(path, labels)
    return labels


def _check_reference(path: Path, labels: dict[str, str]) -> None:
    expected = [name for name in expected_slides() if name.startswith("test_")]
    absent = [name for name in expected if name not in labels]
    if absent:
        raise CohortError(
            f"Reading {path}: {len(absent)} of {len(expected)} test slides have no label: {some(absent)}. "
            "Download reference.csv again."
        )
    published = {f"test_{number:03}" for number in TUMOR_TEST_NUMBERS}
    wrong = [name for name in expected if (labels[name] == "tumor") != (name in published)]
    if wrong:
        raise CohortError(
            f"Reading {path}: {len(wrong)} labels contradict the published ones: {some(wrong)} "
            f"({wrong[0]} is {labels[wrong[0]]} here). Download reference.csv again."
        )


READER = CohortReader(
    "camelyon16", "Camelyon16: 399 lymph node slides, tumor or normal", Settings, read_camelyon16, ("official", "tumor")
)
