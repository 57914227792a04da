"""What would let a model be tested on what it was taught: found in a label table, in pictures and in features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wsi_dino.evaluation.near_duplicates import NearDuplicate

_SHOWN = 5
_SUBSET_WORDS = ({"train", "val", "test"}, {"seen", "unseen"})
_NOT_OF_A_PATIENT = ("slide_id", "patient_id", "path", "note", "cohort")


@dataclass(frozen=True)
class Finding:
    """Something that leaks, or might.

    Attributes:
        kind: in few words that findings of one sort share.
        is_grave: it makes figures wrong; otherwise it is right for some tables and wrong for others.
        text: a sentence that names the slides or patients, a few of them.
        slides: all of them.
    """

    kind: str
    is_grave: bool
    text: str
    slides: tuple[tuple[str, ...], ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON-able values."""
        return {**asdict(self), "slides": [list(group) for group in self.slides]}


def table_findings(rows: Sequence[Mapping[str, str]]) -> list[Finding]:
    """Look through a label table: one slide in two rows, ids that differ in spelling, patients on two sides.

    Args:
        rows: text by column, as in the table; ``patient_id`` may be absent.

    Examples:
        >>> rows = [{"slide_id": "S1", "ER": "pos"}, {"slide_id": "S1", "ER": "neg"}]
        >>> table_findings(rows)[0].text
        'Slide S1 stands in 2 rows that contradict each other in ER.'
    """
    found = list(_repeated_slides(rows))
    found += _spelling(list(dict.fromkeys(row["slide_id"] for row in rows)))
    if rows and "patient_id" in rows[0]:
        found += _patients(rows)
    return found


def _repeated_slides(rows: Sequence[Mapping[str, str]]) -> Iterable[Finding]:
    for slide, same in _grouped(rows, "slide_id").items():
        if len(same) < 2:
            continue
        columns = [column for column in same[0] if len({row[column] for row in same}) > 1]
        what = f"that contradict each other in {', '.join(columns)}" if columns else "that say the same"
        yield Finding("slide in several rows", True, f"Slide {slide} stands in {len(same)} rows {what}.", ((slide,),))


def _spelling(slides: Sequence[str]) -> list[Finding]:
    folded: dict[str, list[str]] = {}
    for slide in slides:
        folded.setdefault(slide.casefold().strip(), []).append(slide)
    alike = [tuple(group) for group in folded.values() if len(group) > 1]
    if not alike:
        return []
    text = f"Slide ids that differ in upper and lower case alone: {_some([' and '.join(group) for group in alike])}."
    return [Finding("slide ids alike", True, text, tuple(alike))]


def _patients(rows: Sequence[Mapping[str, str]]) -> Iterable[Finding]:
    patients = _grouped(rows, "patient_id")
    for column in (name for name in rows[0] if name not in _NOT_OF_A_PATIENT):
        values = {row[column].strip().lower() for row in rows if row[column]}
        several = {p: same for p, same in patients.items() if len({row[column] for row in same if row[column]}) > 1}
        if not several:
            continue
        is_subset = any(values <= words for words in _SUBSET_WORDS)
        slides = tuple(tuple(row["slide_id"] for row in same) for same in several.values())
        if is_subset or column == "centre":
            kind = "patient on two sides" if is_subset else "patient of two centres"
            text = f"{_has(len(several))} slides of different {column}: {_some(list(several))}."
            yield Finding(kind, is_subset, text, slides)
        elif len(values) * 2 <= len(rows):  # not a number or a name that differs in each slide
            yield patients_with_several_labels(column, list(several), slides)


def patients_with_several_labels(
    target: str, patients: Sequence[str], slides: tuple[tuple[str, ...], ...] = ()
) -> Finding:
    """Say that slides of one patient have different labels."""
    text = (
        f"{_has(len(patients))} slides of different {target} ({_some(patients)}): right where the target is of "
        "the slide, an error where it is of the patient."
    )
    return Finding("patient with several labels", False, text, slides)


def duplicate_findings(
    near: Sequence[NearDuplicate], fingerprints: Mapping[str, str], patient_of: Mapping[str, str],
    label_of: Mapping[str, str], sides: Sequence[Mapping[str, str]] = (),
) -> list[Finding]:  # fmt: skip
    """Tell of slides that are another one once more.

    Args:
        near: pairs whose pictures are nearly the same.
        fingerprints: of each slide's features.
        patient_of: of each slide that takes part; others are passed over.
        label_of: of each of these slides.
        sides: for each fold the subset of each patient.
    """
    groups = _grouped([{"slide": s, "print": p} for s, p in fingerprints.items() if s in patient_of], "print")
    equal = [(same[0]["slide"], row["slide"]) for same in groups.values() for row in same[1:]]
    alike = [(pair.first, pair.second) for pair in near if pair.first in patient_of and pair.second in patient_of]
    alike = [pair for pair in alike if pair not in equal and pair[::-1] not in equal]
    told = (
        ("identical features", "have identical features", equal),
        ("near-duplicate pictures", "look the same", alike),
    )
    found = []
    for kind, what, pairs in told:
        for is_grave in (True, False):
            chosen = [pair for pair in pairs if (patient_of[pair[0]] != patient_of[pair[1]]) == is_grave]
            if chosen:
                found.append(_pairs_finding(kind, what, chosen, is_grave, patient_of, label_of, sides))
    return found


def _pairs_finding(
    kind: str, what: str, pairs: list[tuple[str, str]], is_grave: bool, patient_of: Mapping[str, str],
    label_of: Mapping[str, str], sides: Sequence[Mapping[str, str]],
) -> Finding:  # fmt: skip
    whose = "different patients" if is_grave else "one patient"
    text = f"{_count(len(pairs), 'pair')} of slides of {whose} {what}: {_some([' and '.join(pair) for pair in pairs])}."
    contradicting = sum(label_of[a] != label_of[b] for a, b in pairs)
    if contradicting:
        text += f" {_count(contradicting, 'pair')} with different labels."
    if is_grave and sides:
        apart = sum(any(_is_apart(fold, patient_of[a], patient_of[b]) for a, b in pairs) for fold in sides)
        text += f" In {apart} of {len(sides)} folds one is tested and the other taught: those figures are too good."
    elif is_grave:
        text += " Where one is tested and the other taught, figures are too good."
    return Finding(kind, is_grave or contradicting > 0, text, tuple(pairs))


def _is_apart(subset_of: Mapping[str, str], first: str, second: str) -> bool:
    subsets = {subset_of.get(first), subset_of.get(second)}
    return "test" in subsets and bool(subsets & {"train", "val"})


def _grouped(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, list[Mapping[str, str]]]:
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def _has(n: int) -> str:
    return "1 patient has" if n == 1 else f"{n} patients have"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
