"""The leak check that every task goes through before it is learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.evaluation.leaks import Finding, duplicate_findings, patients_with_several_labels, table_findings
from wsi_dino.evaluation.near_duplicates import NearDuplicate, find_near_duplicates
from wsi_dino.evaluation.split import Split
from wsi_dino.mil.material import Material
from wsi_dino.run_folder import RunFolder


def thumbnails_of(runs: Sequence[RunFolder], slide_ids: Sequence[str]) -> dict[str, Path]:
    """Return the pictures that stage `tile` drew of these slides, as far as they are there."""
    places = {slide: [run.thumbnails / f"{slide}.jpg" for run in runs] for slide in slide_ids}
    found = {slide: next((path for path in paths if path.is_file()), None) for slide, paths in places.items()}
    return {slide: path for slide, path in found.items() if path is not None}


def check_material(
    material: Material, split: Split, runs: Sequence[RunFolder], report: Callable[..., None] = lambda *_, **__: None
) -> list[Finding]:
    """Look for slides that are another one once more, and for labels that contradict each other.

    That no patient stands on two sides of a fold, the split itself guarantees.

    Args:
        material: the slides that take part.
        split: how they are dealt.
        runs: whose ``thumbnails/`` show them.
        report: progress, called with 1 for each picture.
    """
    cohort = material.cohort
    pictures = thumbnails_of(runs, cohort.slide_ids)
    report(0, total=len(pictures))
    near = _near_duplicates(tuple(pictures.items()), report)
    patient_of = {row.slide_id: row.patient_id for row in cohort.rows}
    label_of = {row.slide_id: _label(cohort, row) for row in cohort.rows}
    sides = [fold.subset_of() for fold in split]
    found = duplicate_findings(near, dict(material.features_fingerprint), patient_of, label_of, sides)
    if material.has_patient_id and cohort.kind == "classes" and cohort.conflicting_patients:
        found.append(patients_with_several_labels(cohort.target, cohort.conflicting_patients))
    columns = ("slide_id", "patient_id", "centre") if material.has_patient_id else ("slide_id",)
    plain = [{name: material.table.get(row.slide_id, {}).get(name, "") for name in columns} for row in cohort.rows]
    return [
        *found,
        *table_findings([{**cells, "slide_id": r.slide_id} for cells, r in zip(plain, cohort, strict=True)]),
    ]


def _label(cohort: Cohort, row: CohortRow) -> str:
    return cohort.class_names[row.label] if cohort.kind == "classes" else row.target


_known: dict[tuple[tuple[str, Path], ...], list[NearDuplicate]] = {}


def _near_duplicates(pictures: tuple[tuple[str, Path], ...], report: Callable[..., None]) -> list[NearDuplicate]:
    """Compare the pictures once for all tasks and encoders of a command."""
    if pictures not in _known:
        _known.clear()
        _known[pictures] = find_near_duplicates(dict(pictures), report)
    return _known[pictures]
