"""Folds of patients who have several labels each: every label spread evenly, a patient on one side only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_dino.errors import SplitError
from wsi_dino.evaluation.split import SUBSETS, Fold, Split

_VAL_PARTS = 8  # an eighth of the training patients validates


@dataclass(frozen=True)
class FoldRows:
    """Row numbers of one fold, int64 each, in the order of the table."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def rows_of_folds(split: Split, patient_id: Sequence[str]) -> list[FoldRows]:
    """Return which rows each fold trains, validates and tests on; rows of patients it does not name stay out."""
    names = np.asarray(patient_id, dtype=str)
    found = []
    for fold in split:
        members = [np.flatnonzero(np.isin(names, fold.patients(subset))) for subset in SUBSETS]
        found.append(FoldRows(*members))
    return found


def make_label_folds(patient_id: Sequence[str], targets: np.ndarray, k: int = 5, seed: int = 0) -> Split:
    """Deal the patients into `k` test folds, the rarest label first; an eighth of the rest validates.

    Patients of the rarest label are dealt first, each to the fold that lacks that label most (iterative
    stratification, Sechidis et al. 2011). The result depends on patients, labels, `k` and `seed`, not on the
    order of rows. Unknown labels count as absent here.

    Args:
        patient_id: ``(n,)``.
        targets: float ``(n, n_labels)`` of 0, 1 and NaN.
        k: folds.
        seed: of the shuffling.

    Raises:
        SplitError: `k` is below 2, or there are too few patients for it.
    """
    patients, has_label = _patients(patient_id, targets)
    if k < 2:
        raise SplitError(f"Making folds: expected at least 2, got {k}.")
    if len(patients) < max(k, 3):
        raise SplitError(f"Making {k} folds: there are {len(patients)} patients only. Use fewer folds or more images.")
    part_of = _deal(has_label, k, np.random.default_rng([seed, 0]))
    folds = []
    for number in range(k):
        rest = np.flatnonzero(part_of != number)
        train, val = _carve(rest, has_label, np.random.default_rng([seed, 1 + number]))
        folds.append(_fold(patients, train, val, np.flatnonzero(part_of == number)))
    return Split(tuple(folds), f"{k}-fold by patient, seed {seed}", seed)


def split_of_subsets(
    patient_id: Sequence[str], subset: Sequence[str], targets: np.ndarray, seed: int = 0, scheme: str = "given"
) -> Split:
    """Return the one fold that a table's subsets make; without ``val`` an eighth of the training patients is carved.

    Args:
        patient_id: ``(n,)``.
        subset: ``(n,)`` of ``train``, ``val`` and ``test``.
        targets: float ``(n, n_labels)``, for spreading labels over training and validation.
        seed: of the carving.
        scheme: what the partition is called.

    Raises:
        SplitError: a patient stands in two subsets, or nothing is to train or to test on.
    """
    members: dict[str, list[str]] = {name: [] for name in SUBSETS}
    for patient, name in sorted(set(zip(patient_id, subset, strict=True))):
        members[name].append(patient)
    for name in ("train", "test"):
        if not members[name]:
            raise SplitError(f"Reading the split {scheme!r}: no image of subset {name}.")
    note = ""
    if not members["val"]:
        _refuse_overlap(members, scheme)
        patients, has_label = _patients(patient_id, targets)
        row_of = {patient: row for row, patient in enumerate(patients)}
        rows = np.array([row_of[patient] for patient in members["train"]])
        train, val = _carve(rows, has_label, np.random.default_rng([seed, 1]))
        members |= {"train": [patients[row] for row in train], "val": [patients[row] for row in val]}
        note = f", an eighth of the training patients validates (seed {seed})"
    return Split((Fold(*(tuple(members[name]) for name in SUBSETS)),), scheme + note, seed)


def _refuse_overlap(members: dict[str, list[str]], scheme: str) -> None:
    both = sorted(set(members["train"]) & set(members["test"]))
    if both:
        raise SplitError(
            f"Reading the split {scheme!r}: patient {both[0]} stands in both train and test ({len(both)} patients do). "
            "A patient belongs to one subset, or the result would leak."
        )


def _patients(patient_id: Sequence[str], targets: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the patients, sorted, and bool ``(n_patients, n_labels + 1)``: a label they have, or none at all."""
    patients, owner = np.unique(np.asarray(patient_id, dtype=str), return_inverse=True)
    has_label = np.zeros((len(patients), targets.shape[1]), bool)
    np.logical_or.at(has_label, owner, np.asarray(targets) == 1)
    return patients.tolist(), np.column_stack([has_label, ~has_label.any(1)])


def _carve(rows: np.ndarray, has_label: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if len(rows) < 2:
        raise SplitError("Carving validation patients: at least 2 training patients are needed.")
    part_of = _deal(has_label[rows], min(_VAL_PARTS, len(rows)), random)
    return rows[part_of != 0], rows[part_of == 0]


def _fold(patients: list[str], train: np.ndarray, val: np.ndarray, test: np.ndarray) -> Fold:
    return Fold(*(tuple(patients[row] for row in rows) for rows in (train, val, test)))


def _deal(has_label: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """Return the part 0..k-1 of each patient."""
    n = len(has_label)
    order = random.permutation(n)
    wanted = np.repeat(has_label.sum(0)[None] / k, k, axis=0)  # of each label, still lacking in each part
    room = np.full(k, n / k)
    part_of = np.full(n, -1)
    for label in np.argsort(has_label.sum(0), kind="stable"):
        for patient in order[has_label[order, label] & (part_of[order] < 0)]:
            part = int(np.lexsort((np.arange(k), -room, -wanted[:, label]))[0])
            part_of[patient] = part
            wanted[part] -= has_label[patient]
            room[part] -= 1
    return part_of
