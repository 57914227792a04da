"""Which patients train, validate and test in each fold; a patient never stands on two sides."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from wsi_dino.errors import SplitError, nearest_name
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.provenance import fingerprint, write_text_atomically

SUBSETS = ("train", "val", "test")
Subset = Literal["train", "val", "test"]
_VAL_SHARE = 1 / 8  # of what the test fold leaves: 7:1:2 with five folds
_MIN_PATIENTS = 3  # a class needs one patient in each of train, val and test
_SHOWN = 5


@dataclass(frozen=True)
class Fold:
    """One partition of patients.

    Attributes:
        train, val, test: patient ids, each patient once in all three together.

    Raises:
        SplitError: a subset is empty, or a patient stands twice.

    Examples:
        >>> Fold(train=("a", "b"), val=("c",), test=("a",))
        Traceback (most recent call last):
        ...
        wsi_dino.errors.SplitError: Making a fold: patient a stands in both train and test. ...
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for subset in SUBSETS:
            if not self.patients(subset):
                raise SplitError(f"Making a fold: {subset} has no patient. Each of train, val and test needs some.")
            for patient in self.patients(subset):
                if patient in seen:
                    places = (
                        f"in both {seen[patient]} and {subset}" if seen[patient] != subset else f"twice in {subset}"
                    )
                    raise SplitError(
                        f"Making a fold: patient {patient} stands {places}. "
                        "A patient belongs to one subset of a fold, or the result would leak."
                    )
                seen[patient] = subset

    def patients(self, subset: str) -> tuple[str, ...]:
        """Return the patients of one subset."""
        return {"train": self.train, "val": self.val, "test": self.test}[subset]

    def subset_of(self) -> dict[str, str]:
        """Return the subset of each patient."""
        return {patient: subset for subset in SUBSETS for patient in self.patients(subset)}


@dataclass(frozen=True)
class Split:
    """A whole scheme of folds.

    Attributes:
        folds: at least one.
        scheme: how it came about, e.g. ``"5-fold, seed 0"`` or the file's name.
        seed: of the shuffling; None for a split that was read.
    """

    folds: tuple[Fold, ...]
    scheme: str
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.folds:
            raise SplitError(f"Making the split {self.scheme!r}: it has no fold.")

    def __len__(self) -> int:
        return len(self.folds)

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change whenever a patient moves."""
        return fingerprint([[sorted(fold.patients(subset)) for subset in SUBSETS] for fold in self.folds])


def make_folds(cohort: Cohort, k: int, seed: int) -> Split:
    """Deal the patients into `k` test folds, stratified by class; an eighth of the rest validates.

    Survival is stratified by whether the event was seen, numbers by quarters, several labels by combination.

    With five folds that is train:val:test = 7:1:2. Each patient is tested exactly once. The result
    depends on the set of patients and their labels, `k` and `seed` alone, not on the order of rows.
    A patient with slides of several classes is stratified by that combination.

    Raises:
        SplitError: `k` is below 2, a class has fewer patients than `k` (or than three), or a class
            would be absent from a subset of a fold.
    """
    if k < 2:
        raise SplitError(f"Making folds: expected at least 2, got {k}. To train once, give a split file.")
    _check_enough_patients(cohort, k)
    tests = _deal(_strata(cohort), k, seed)
    folds = tuple(_with_validation(cohort, set(test), seed, index) for index, test in enumerate(tests))
    split = Split(folds, f"{k}-fold, seed {seed}", seed)
    check_split(split, cohort)
    return split


def _strata(cohort: Cohort) -> dict[tuple[int, ...], list[str]]:
    strata: dict[tuple[int, ...], list[str]] = {}
    for patient, rows in cohort.patients.items():
        strata.setdefault(tuple(sorted({row.label for row in rows})), []).append(patient)
    return dict(sorted(strata.items()))


def _check_enough_patients(cohort: Cohort, k: int) -> None:
    needed = max(k, _MIN_PATIENTS)
    for label in cohort.needed:
        n = sum(any(row.label == label for row in rows) for rows in cohort.patients.values())
        name = cohort.class_names[label]
        _require(n, needed, k, cohort, f"class {name!r} has" if cohort.kind == "classes" else f"the {name} was seen in")
    if not cohort.needed:
        _require(len(cohort.patients), needed, k, cohort, "there are")


def _require(n: int, needed: int, k: int, cohort: Cohort, what: str) -> None:
    if n < needed:
        advice = f"Use at most --folds {n}" if n >= _MIN_PATIENTS else f"At least {_MIN_PATIENTS} are needed"
        raise SplitError(
            f"Making {k} folds for target {cohort.target!r}: {what} {n} patients, fewer than "
            f"the {needed} it takes to have some in each fold. {advice}, or add such patients."
        )


def _deal(strata: Mapping[tuple[int, ...], list[str]], k: int, seed: int) -> list[list[str]]:
    tests: list[list[str]] = [[] for _ in range(k)]
    position = 0  # runs on from stratum to stratum, so that the folds are of equal size
    for number, patients in enumerate(strata.values()):
        shuffled = np.random.default_rng([seed, 0, number]).permutation(len(patients))
        for index in shuffled:
            tests[position % k].append(patients[index])
            position += 1
    return tests


def make_repeats(cohort: Cohort, subset_of: Mapping[str, str], n: int, seed: int, scheme: str) -> Split:
    """Repeat one given partition `n` times; where it names no validation patients, each repeat draws its own.

    An eighth of the training patients validates, stratified by class. The test patients are the same in
    every repeat; what differs is what the models were taught and how they began.

    Args:
        cohort: the patients.
        subset_of: ``train``, ``val`` or ``test`` for every patient of the cohort.
        n: repeats, one fold of the split each.
        seed: of the drawing.
        scheme: what the partition is called.

    Raises:
        SplitError: no patient to train or to test on, or a class is absent from a subset.
    """
    members = {name: [p for p in cohort.patients if subset_of[p] == name] for name in SUBSETS}
    for name in ("train", "test"):
        if not members[name]:
            raise SplitError(f"Making the split {scheme!r}: no patient with features is of subset {name}.")
    if members["val"]:
        folds = [Fold(*(tuple(members[name]) for name in SUBSETS))] * n
    else:
        outside = set(members["test"])
        folds = [_with_validation(cohort, outside, seed, number) for number in range(n)]
    split = Split(tuple(folds), f"{scheme}, {n} seeds from {seed}", seed)
    check_split(split, cohort)
    return split


def _with_validation(cohort: Cohort, test: set[str], seed: int, fold: int) -> Fold:
    left = [[patient for patient in patients if patient not in test] for patients in _strata(cohort).values()]
    randoms = [np.random.default_rng([seed, 1 + fold, number]) for number in range(len(left))]
    shuffled = [[p[i] for i in random.permutation(len(p))] for p, random in zip(left, randoms, strict=True)]
    if cohort.needed:
        sizes = _validation_sizes([len(patients) for patients in left])
        val = [patient for patients, size in zip(shuffled, sizes, strict=True) for patient in patients[:size]]
    else:
        val = _every_eighth([patient for patients in shuffled for patient in patients], seed, fold)
    train = sorted({patient for patients in left for patient in patients} - set(val))
    return Fold(tuple(train), tuple(sorted(val)), tuple(sorted(test)))


def _every_eighth(ordered: list[str], seed: int, fold: int) -> list[str]:
    """Many small groups that no subset need hold: neighbours are alike, so an even comb is balanced."""
    step = round(1 / _VAL_SHARE)
    start = int(np.random.default_rng([seed, 1 + fold, step]).integers(min(step, len(ordered))))
    return ordered[start::step]


def _validation_sizes(sizes: list[int]) -> list[int]:
    """Share `_VAL_SHARE` of all by largest remainder, at least one of each stratum that has two."""
    wanted = [size * _VAL_SHARE for size in sizes]
    taken = [max(int(want), 1 if size >= 2 else 0) for want, size in zip(wanted, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (taken[i] - wanted[i], i))
    for index in by_remainder:
        if sum(taken) < round(sum(wanted)) and taken[index] < sizes[index] - 1:
            taken[index] += 1
    return taken


def check_split(split: Split, cohort: Cohort) -> None:
    """Check that every fold holds every patient of the cohort, and every class in every subset.

    Raises:
        SplitError: naming the fold and the patients or the class.
    """
    for number, fold in enumerate(split.folds):
        subset_of = fold.subset_of()
        where = f"Checking the split {split.scheme!r}, fold {number}"
        unknown = sorted(set(subset_of) - set(cohort.patients))
        if unknown:
            near = nearest_name(unknown[0], cohort.patients)
            raise SplitError(f"{where}: {_some(unknown)} is no patient of the cohort.{near}")
        missing = sorted(set(cohort.patients) - set(subset_of))
        if missing:
            raise SplitError(f"{where}: no subset for patient {_some(missing)}. Every patient needs one, or remove it.")
        _check_classes(where, fold, cohort)


def _check_classes(where: str, fold: Fold, cohort: Cohort) -> None:
    for subset in SUBSETS:
        present = {row.label for patient in fold.patients(subset) for row in cohort.patients[patient]}
        absent = [cohort.class_names[label] for label in cohort.needed if label not in present]
        if absent:
            what = "no slide of class" if cohort.kind == "classes" else "nobody with the"
            raise SplitError(
                f"{where}: {subset} ({len(fold.patients(subset))} patients) has {what} {_some(absent)}. "
                "Use fewer folds, another seed, or more patients."
            )


def read_split(csv_path: Path, cohort: Cohort, *, ignore_unknown: bool = False) -> Split:
    """Read folds from a table with the columns ``fold``, ``patient_id`` (or ``slide_id``) and ``subset``.

    ``data_splits/README.md`` describes the format.

    Args:
        csv_path: the table.
        cohort: the patients that must be covered.
        ignore_unknown: pass over patients that the cohort has not, as when a published split is used
            on a part of its slides.

    Raises:
        SplitError: a column is missing, a subset has another name, a patient or slide is unknown,
            missing or on two sides, or a class is absent from a subset.
    """
    folds: dict[str, dict[str, list[str]]] = {}
    patient_of = {row.slide_id: row.patient_id for row in cohort.rows}
    for line, fold, name, subset, is_slide in _split_rows(csv_path):
        patient = patient_of.get(name) if is_slide else name
        if patient not in cohort.patients:
            if ignore_unknown:
                continue
            known = cohort.slide_ids if is_slide else cohort.patients
            kind = "slide" if is_slide else "patient"
            raise SplitError(
                f"Reading the split {csv_path}: line {line}: {name!r} is no labelled {kind} of the cohort "
                f"with features.{nearest_name(name, known)}"
            )
        members = folds.setdefault(fold, {name: [] for name in SUBSETS})[subset]
        if not (is_slide and patient in members):  # several slides of one patient
            members.append(str(patient))
    split = Split(tuple(_fold(csv_path, name, folds[name]) for name in _fold_order(folds)), csv_path.stem)
    check_split(split, cohort)
    return split


def read_sides(csv_path: Path, patient_of: Mapping[str, str]) -> list[dict[str, str]]:
    """Read the subset of each patient in each fold of a split table, whatever the target.

    Args:
        csv_path: see `read_split`.
        patient_of: the patient of each slide, for a table that names slides; one it lacks is its own patient.

    Raises:
        SplitError: the table is not of the right form, or a patient stands on two sides of a fold.
    """
    folds: dict[str, dict[str, str]] = {}
    for line, fold, name, subset, is_slide in _split_rows(csv_path):
        patient = patient_of.get(name, name) if is_slide else name
        earlier = folds.setdefault(fold, {}).setdefault(patient, subset)
        if earlier != subset:
            raise SplitError(
                f"Reading the split {csv_path}: line {line}: in fold {fold} patient {patient} stands in both {earlier} "
                f"and {subset}. A patient belongs to one subset of a fold, or the result would leak."
            )
    return [folds[name] for name in _fold_order(folds)]


def _fold(path: Path, name: str, members: Mapping[str, Sequence[str]]) -> Fold:
    try:
        return Fold(*(tuple(sorted(members[subset])) for subset in SUBSETS))
    except SplitError as error:
        raise SplitError(f"Reading the split {path}, fold {name}: {error}") from error


def _fold_order(folds: Mapping[str, object]) -> list[str]:
    return sorted(folds, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _split_rows(path: Path) -> list[tuple[int, str, str, str, bool]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SplitError(f"Reading the split {path}: no such file, or not UTF-8 text ({error}).") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    columns = reader.fieldnames or []
    id_column = "patient_id" if "patient_id" in columns else "slide_id"
    for needed in ("fold", id_column, "subset"):
        if needed not in columns:
            wanted = "fold, patient_id (or slide_id) and subset"
            raise SplitError(f"Reading the split {path}: expected the columns {wanted}, got {', '.join(columns)}.")
    rows = []
    for row in reader:
        fold, name, subset = ((row[column] or "").strip() for column in ("fold", id_column, "subset"))
        if subset not in SUBSETS:
            raise SplitError(
                f"Reading the split {path}: line {reader.line_num}: subset must be train, val or test, got {subset!r}."
            )
        rows.append((reader.line_num, fold, name, subset, id_column == "slide_id"))
    return rows


def write_split(path: Path, split: Split) -> None:
    """Write `split` in the form that `read_split` reads, sorted, the same bytes for the same split."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fold", "patient_id", "subset"])
    for number, fold in enumerate(split.folds):
        for subset in SUBSETS:
            writer.writerows([number, patient, subset] for patient in sorted(fold.patients(subset)))
    write_text_atomically(path, buffer.getvalue())


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
