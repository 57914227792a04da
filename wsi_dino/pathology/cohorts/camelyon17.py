"""Camelyon17: 500 labelled lymph node slides of 100 patients from five centres."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

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

_COLUMNS = (
    "slide_id", "patient_id", "centre", "cohort", "stage", "tumor", "attrimil", "strict_centre", "path", "note",
)  # fmt: skip
_SUFFIXES = (".tif", ".tiff")
_MASKS = ("mask", "masks")
_STAGES = ("negative", "itc", "micro", "macro")
_STAGE_COUNTS = {"negative": 318, "itc": 36, "micro": 59, "macro": 87}
_NODE = re.compile(r"patient_(\d{3})_node_(\d)")
_N_PATIENTS, _N_NODES, _PATIENTS_A_CENTRE = 100, 5, 20
_FIRST_SEEN_PATIENT = 70  # of the subsets as AttriMIL publishes them: patients 070 to 099 are seen
_SEEN_CENTRES = ("3", "4")
_UNAVAILABLE = "patient_052_node_1"  # reported as unreadable elsewhere: its absence is told and no failure
_SUBSET_COUNTS = {("attrimil", "seen"): 140, ("attrimil", "unseen"): 324, ("strict_centre", "seen"): 184,
                  ("strict_centre", "unseen"): 280}  # fmt: skip
# patient_node of the slides with isolated tumour cells only, as published
ITC_NODES = (
    "004_4", "005_3", "005_4", "006_2", "006_4", "009_0", "014_3", "015_4", "016_1", "017_1", "018_4", "024_1",
    "024_2", "024_4", "026_0", "029_2", "037_1", "038_4", "040_2", "041_0", "060_3", "064_0", "064_3", "067_3",
    "068_1", "068_4", "072_0", "076_4", "080_0", "080_1", "081_4", "086_0", "086_4", "087_0", "087_1", "088_4",
)  # fmt: skip


class Camelyon17Settings(Settings):
    """What may be chosen for Camelyon17."""

    itc: Literal["drop", "negative", "positive"] = Field(
        default="drop", description="What slides with isolated tumour cells only count as."
    )


def expected_slides() -> dict[str, str]:
    """Return the official place of each of the 500 slides, by its name.

    Examples:
        >>> len(expected_slides()), expected_slides()["patient_025_node_4"]
        (500, 'training/center_1/patient_025_node_4.tif')
    """
    return {
        f"patient_{p:03}_node_{n}": f"training/center_{p // _PATIENTS_A_CENTRE}/patient_{p:03}_node_{n}.tif"
        for p in range(_N_PATIENTS)
        for n in range(_N_NODES)
    }


def subsets_of(slide_id: str, centre: str) -> dict[str, str]:
    """Return ``seen`` or ``unseen`` of a slide in either scheme.

    ``attrimil`` are the subsets of 140 and 324 slides in use; ten patients of centre 3 are among its unseen
    ones. ``strict_centre`` goes by the centre alone.

    Examples:
        >>> subsets_of("patient_065_node_1", "3")
        {'attrimil': 'unseen', 'strict_centre': 'seen'}
    """
    seen = {"attrimil": int(slide_id[8:11]) >= _FIRST_SEEN_PATIENT, "strict_centre": centre in _SEEN_CENTRES}
    return {scheme: "seen" if is_seen else "unseen" for scheme, is_seen in seen.items()}


def read_camelyon17(folder: Path, settings: Camelyon17Settings) -> CohortTable:
    """Read Camelyon17's labelled part as downloaded, with the newer ``stages.csv`` or the older ``stage_labels.csv``.

    Raises:
        CohortError: the folder or the table of stages is missing, does not name each slide, or contradicts
            the published list of slides with isolated tumour cells.
    """
    download = Download(folder, "Camelyon17")
    stages, centres = _read_stages(
        download.require(
            "stages.csv", "training/stage_labels.csv", "training/stages.csv", "stage_labels.csv",
            what="the table of stages",
        )
    )  # fmt: skip
    expected = {name: place for name, place in expected_slides().items() if _takes(stages[name], settings)}
    found = download.find_slides(expected, _SUFFIXES, _MASKS)
    missing = tuple(place for place in found.missing if _UNAVAILABLE not in place)
    rows = tuple(
        _row(name, found.paths[name], stages[name], centres[name], settings, download)
        for name in expected
        if name in found.paths
    )
    n_expected = len(expected) - (_UNAVAILABLE not in found.paths)
    table = CohortTable(
        _COLUMNS, rows, n_expected, missing, _checks(stages, rows, found, settings), tuple(_remarks(found, stages))
    )
    return with_partial_note(table)


def _takes(stage: str, settings: Camelyon17Settings) -> bool:
    return stage != "itc" or settings.itc != "drop"


def _row(
    name: str, path: Path, stage: str, centre: str, settings: Camelyon17Settings, download: Download
) -> dict[str, str]:
    tumor = {"negative": False, "itc": settings.itc == "positive"}.get(stage, True)
    return {
        "slide_id": path.stem, "patient_id": name[:11], "centre": centre, "cohort": "camelyon17", "stage": stage,
        "tumor": "tumor" if tumor else "normal", **subsets_of(name, centre), "path": download.relative(path),
        "note": _note(settings),
    }  # fmt: skip


def _note(settings: Camelyon17Settings) -> str:
    told = {"drop": "are left out", "negative": "count as normal", "positive": "count as tumor"}[settings.itc]
    return f"Camelyon17: the 36 slides with isolated tumour cells only (ITC) {told} (ITC policy: {settings.itc})."


def _checks(
    stages: dict[str, str], rows: tuple[dict[str, str], ...], found: Found, settings: Camelyon17Settings
) -> tuple[Check, ...]:
    checks = [Check(f"labelled {stage}", n, list(stages.values()).count(stage)) for stage, n in _STAGE_COUNTS.items()]
    if settings.itc == "drop" and _UNAVAILABLE in found.paths:
        for (scheme, subset), n in _SUBSET_COUNTS.items():
            checks.append(Check(f"{scheme} {subset}", n, sum(row[scheme] == subset for row in rows)))
    return tuple(checks)


def _remarks(found: Found, stages: dict[str, str]) -> list[str]:
    remarks = []
    if _UNAVAILABLE not in found.paths:
        remarks.append(f"{_UNAVAILABLE} is absent: others could not read it either, so it is not counted as missing.")
    names = [path.stem.lower() for path in found.others]
    unlabelled = [name for name in names if _NODE.fullmatch(name) and name not in stages]
    if unlabelled:
        remarks.append(f"{len(unlabelled)} slides of the test part have no public label and are left out.")
    unknown = [name for name in names if not _NODE.fullmatch(name) and not name.endswith("_mask")]
    if unknown:
        remarks.append(f"{len(unknown)} files are no slides of Camelyon17 and are left out: {some(unknown)}.")
    return remarks


def _read_stages(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return stage and centre of each slide; rows of whole patients (``patient_000.zip,pN0``) are passed over."""
    lines = read_csv_lines(path)
    header = [cell.lower() for cell in lines[0][1]] if lines else []
    if header[:2] != ["patient", "stage"]:
        got = ",".join(header) or "nothing"
        raise CohortError(f"Reading {path}: expected the header patient,stage or patient,stage,center, got {got}.")
    stages: dict[str, str] = {}
    centres: dict[str, str] = {}
    for line, cells in lines[1:]:
        name, stage = Path(cells[0]).stem.lower(), cells[1].lower() if len(cells) > 1 else ""
        node = _NODE.fullmatch(name)
        if node is None:
            continue
        if stage not in _STAGES or name in stages:
            why = "a second time" if name in stages else f"expected {', '.join(_STAGES)}, got {stage!r}"
            raise CohortError(f"Reading {path}: line {line}, {name}: {why}.")
        stages[name] = stage
        stated = cells[2] if len(cells) > 2 and "cent" in "".join(header[2:3]) else ""
        centres[name] = stated or str(int(node[1]) // _PATIENTS_A_CENTRE)
    _check_stages(path, stages)
    return stages, centres


def _check_stages(path: Path, stages: dict[str, str]) -> None:
    absent = [name for name in expected_slides() if name not in stages]
    if absent:
        raise CohortError(
            f"Reading {path}: {len(absent)} of {_N_PATIENTS * _N_NODES} slides have no stage: {some(absent)}. "
            "Download the table again."
        )
    published = {f"patient_{patient}_node_{node}" for patient, _, node in (name.partition("_") for name in ITC_NODES)}
    wrong = [name for name in expected_slides() if (stages[name] == "itc") != (name in published)]
    if wrong:
        raise CohortError(
            f"Reading {path}: {len(wrong)} slides contradict the published list of slides with isolated tumour cells: "
            f"{some(wrong)} ({wrong[0]} is {stages[wrong[0]]} here). Download the table again."
        )


READER = CohortReader(
    "camelyon17", "Camelyon17: 500 labelled lymph node slides of 100 patients, five centres", Camelyon17Settings,
    read_camelyon17, ("centre", "stage", "tumor", "attrimil", "strict_centre"),
)  # fmt: skip
