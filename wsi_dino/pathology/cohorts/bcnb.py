"""BCNB: core-needle biopsies of 1,058 patients with early breast cancer, one plain JPEG each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydantic import Field

from wsi_dino.errors import CohortError, nearest_name
from wsi_dino.pathology.cohorts.cohort_table import (
    Check,
    CohortReader,
    CohortTable,
    Settings,
    some,
    with_partial_note,
)
from wsi_dino.pathology.cohorts.download import Download, Found, read_csv_lines
from wsi_dino.pathology.cohorts.spreadsheet import read_first_sheet

_N_PATIENTS = 1058
_SUFFIXES = (".jpg", ".jpeg")
_PATCHES = ("patches", "paper_patches")  # tiles of the slides, named by number as the slides are
_TABLE = "patient-clinical-data.xlsx"
_SUBSETS = {"train": 630, "val": 210, "test": 218}
_NEEDED = ("Patient ID", "ER", "PR", "HER2", "Ki67", "ALN status")
_PUBLISHED = {"ER": (831, 227), "PR": (790, 268), "HER2": (277, 781)}  # positive, negative
_ALN = {"train": (390, 240), "val": (131, 79), "test": (134, 84)}  # N0, N+
_PERCENT = "Ki67 percent"
_ABSENT = ("", "na", "n/a", "nan", "none", "unknown", "-", "/")


class BcnbSettings(Settings):
    """What may be chosen for BCNB."""

    ki67_cut: float = Field(default=14, gt=0, le=100, description="Ki67 is Positive at this percentage and above.")


def read_bcnb(folder: Path, settings: BcnbSettings) -> CohortTable:
    """Read BCNB as downloaded.

    All columns of the clinical table are kept; ``Ki67`` becomes Negative or Positive by the cut and its
    percentage stands in ``Ki67 percent``. The dataset's own split is the column ``official``.

    Raises:
        CohortError: the folder or the clinical table is missing, a column of it is missing or renamed, a
            patient stands twice, or Ki67 is no percentage.
    """
    download = Download(folder, "BCNB")
    header, clinical = _read_clinical(download.require(_TABLE, what="the clinical table"))
    found = download.find_slides({str(n): f"WSIs/{n}.jpg" for n in range(1, _N_PATIENTS + 1)}, _SUFFIXES, _PATCHES)
    subset_of, absent = _read_own_split(download)
    slides = {name: path for name, path in found.paths.items() if name in clinical}
    unlabelled = [name for name in found.paths if name not in clinical]
    others = [name for name in header if name != "Patient ID"]
    columns = ("slide_id", "patient_id", "centre", "cohort", "official", *others, _PERCENT, "path", "note")
    percent, unread = _percentages({name: clinical[name]["Ki67"] for name in slides})
    note = f"BCNB: Ki67 is Positive at {settings.ki67_cut:g} % and above (--ki67-cut)."
    rows = tuple(
        {
            "slide_id": path.stem, "patient_id": name, "centre": "", "cohort": "bcnb",
            "official": subset_of.get(name, ""), **_cleaned(clinical[name]),
            "Ki67": _ki67(percent[name], settings), _PERCENT: "" if percent[name] is None else f"{percent[name]:g}",
            "path": download.relative(path), "note": note,
        }
        for name, path in slides.items()
    )  # fmt: skip
    remarks = _remarks(found, unlabelled, unread, rows)
    regions = {path.stem: path.with_suffix(".json") for path in slides.values() if path.with_suffix(".json").is_file()}
    split = {name: subset_of[name] for name in slides if name in subset_of}
    table = CohortTable(
        columns, rows, _N_PATIENTS, (*absent, *found.missing), _checks(rows), tuple(remarks), split, regions
    )
    return with_partial_note(table)


def _read_clinical(path: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    rows = read_first_sheet(path)
    if not rows:
        raise CohortError(f"Reading {path}: the first sheet is empty.")
    header = [" ".join(name.split()) for name in rows[0]]
    for name in _NEEDED:
        if name not in header:
            raise CohortError(
                f"Reading {path}: there is no column {name!r}.{nearest_name(name, header)} "
                f"Columns there are: {', '.join(filter(None, header))}."
            )
    named = [(place, name) for place, name in enumerate(header) if name]
    clinical: dict[str, dict[str, str]] = {}
    for number, cells in enumerate(rows[1:], 2):
        row = {name: cells[place] for place, name in named}
        patient = row["Patient ID"]
        if not patient or patient in clinical:
            why = f"patient {patient} stands twice" if patient else "Patient ID is empty"
            raise CohortError(f"Reading {path}: row {number}: {why}. Expected one row a patient.")
        clinical[patient] = row
    return [name for _, name in named], clinical


def _cleaned(row: dict[str, str]) -> dict[str, str]:
    return {name: "" if value.lower() in _ABSENT else value for name, value in row.items() if name != "Patient ID"}


def _percentages(cells: dict[str, str]) -> tuple[dict[str, float | None], list[str]]:
    """Return Ki67 in percent for each patient, None where it is absent, and the cells that say no number."""
    percent: dict[str, float | None] = {}
    unread: list[str] = []
    for name, cell in cells.items():
        try:
            percent[name] = None if cell.lower() in _ABSENT else float(cell.removesuffix("%"))
        except ValueError:
            percent[name] = None
            unread.append(f"{name} ({cell})")
    known = [value for value in percent.values() if value is not None]
    if known and (min(known) < 0 or max(known) > 100 or max(known) <= 1):
        raise CohortError(
            f"Reading Ki67 of BCNB: expected percentages, got values from {min(known):g} to {max(known):g}. "
            "Download the clinical table again."
        )
    return percent, unread


def _ki67(percent: float | None, settings: BcnbSettings) -> str:
    if percent is None:
        return ""
    return "Positive" if percent >= settings.ki67_cut else "Negative"


def _read_own_split(download: Download) -> tuple[dict[str, str], list[str]]:
    """Return the subset of each patient, and the files of the split that are absent."""
    subset_of: dict[str, str] = {}
    absent: list[str] = []
    for subset in _SUBSETS:
        place = f"dataset-splitting/{subset}_id.txt"
        try:
            path = download.require(place, what=f"the list of {subset} patients")
        except CohortError:
            absent.append(place)
            continue
        for line, cells in read_csv_lines(path):
            earlier = subset_of.setdefault(cells[0], subset)
            if earlier != subset:
                raise CohortError(
                    f"Reading {path}: line {line}: patient {cells[0]} is in {earlier} and {subset}. "
                    "A patient belongs to one subset; download the lists again."
                )
    return subset_of, absent


def _checks(rows: tuple[dict[str, str], ...]) -> tuple[Check, ...]:
    checks = [Check("slides", _N_PATIENTS, len(rows))]
    for subset, n in _SUBSETS.items():
        members = [row for row in rows if row["official"] == subset]
        n0 = sum(row["ALN status"] == "N0" for row in members)
        n_plus = sum(row["ALN status"].startswith("N+") for row in members)
        checks += [Check(f"{subset} patients", n, len(members))]
        checks += [Check(f"{subset}, N0", _ALN[subset][0], n0), Check(f"{subset}, N+", _ALN[subset][1], n_plus)]
    for target, published in _PUBLISHED.items():
        found = Counter(row[target] for row in rows)
        for value, n in zip(("Positive", "Negative"), published, strict=True):
            checks.append(Check(f"{target} {value}", n, found[value]))
    return tuple(checks)


def _remarks(found: Found, unlabelled: list[str], unread: list[str], rows: tuple[dict[str, str], ...]) -> list[str]:
    ki67 = Counter(row["Ki67"] for row in rows)
    remarks = [
        f"Ki67 by this cut: {ki67['Positive']} Positive, {ki67['Negative']} Negative, {ki67['']} without a value "
        "(the paper counts 156 and 902, and names no cut)."
    ]
    if unread:
        remarks.append(f"Ki67 of {len(unread)} patients is no number and left empty: {some(unread)}.")
    if unlabelled:
        remarks.append(f"{len(unlabelled)} slides have no row in the clinical table: {some(unlabelled)}.")
    if found.others:
        remarks.append(f"{len(found.others)} pictures are no slides (other names than 1.jpg to 1058.jpg); left out.")
    if found.elsewhere:
        remarks.append(f"{len(found.elsewhere)} slides lie outside WSIs/; they are taken.")
    return remarks


READER = CohortReader(
    "bcnb", "BCNB: core-needle biopsies of 1,058 breast cancer patients", BcnbSettings, read_bcnb,
    ("official", "ER", "PR", "HER2", "Ki67", "ALN status"),
)  # fmt: skip
