"""Which cases train and which validate: the folds that nnU-Net uses, and five random splits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wsi_dino.errors import SplitError
from wsi_dino.segmentation.case import Case, SegmentationDataset

Scheme = Literal["kfold", "repeated-holdout", "patients"]
SCHEMES: tuple[Scheme, ...] = ("kfold", "repeated-holdout", "patients")
SEED = 12345  # nnU-Net's and MONAI's
_HELD_OUT = 0.2


@dataclass(frozen=True)
class SegmentationFold:
    """One partition.

    Attributes:
        number: from 0.
        train, val: case ids, sorted.
    """

    number: int
    train: tuple[str, ...]
    val: tuple[str, ...]


def default_scheme(dataset: SegmentationDataset) -> Scheme:
    """Return ``patients`` for datasets with several studies a patient, else ``kfold``."""
    return "patients" if dataset.by_patient else "kfold"


def describe_scheme(scheme: Scheme, n_folds: int) -> str:
    """Say in a sentence how the folds were made, for outputs."""
    return {
        "kfold": f"KFold({n_folds}, shuffle=True, random_state={SEED}) over case ids sorted as text, as nnU-Net and "
        "MONAI do",
        "repeated-holdout": f"{n_folds} independent random splits of 80/20 over patients sorted as text "
        f"(seeds {SEED} to {SEED + n_folds - 1}): validation sets overlap",
        "patients": f"patients sorted as text, every {n_folds}th from the fold's number on is validated "
        "(patients[fold::n], as nnU-Net's converter of autoPET); cases of a patient stay together",
    }[scheme]


def make_folds(cases: Sequence[Case], n_folds: int, scheme: Scheme) -> list[SegmentationFold]:
    """Return the folds.

    Args:
        cases: with unique ids.
        n_folds: at least 2 (of ``repeated-holdout`` at least 1).
        scheme: see `describe_scheme`.

    Raises:
        SplitError: too few cases or patients, or ids that occur twice, or ``kfold`` would put a patient on both sides.
    """
    ids = sorted(case.case_id for case in cases)
    patients = sorted({case.patient_id for case in cases})
    n_units = len(ids) if scheme == "kfold" else len(patients)
    if len(set(ids)) != len(ids):
        raise SplitError(f"Making folds: case ids are not unique ({_first_double(ids)} occurs twice).")
    if n_units < max(n_folds, 2):
        unit = "cases" if scheme == "kfold" else "patients"
        raise SplitError(f"Making folds: {n_folds} folds need at least {max(n_folds, 2)} {unit}, there are {n_units}.")
    if scheme == "kfold":
        _require_one_case_a_patient(cases)
        held_out = _kfold(ids, n_folds)
    else:
        of_fold = _every_nth(patients, n_folds) if scheme == "patients" else _holdouts(patients, n_folds)
        held_out = [{case.case_id for case in cases if case.patient_id in chosen} for chosen in of_fold]
    return [
        SegmentationFold(number, tuple(i for i in ids if i not in val), tuple(i for i in ids if i in val))
        for number, val in enumerate(held_out)
    ]


def _first_double(ids: Sequence[str]) -> str:
    return next(a for a, b in itertools.pairwise(ids) if a == b)


def _require_one_case_a_patient(cases: Sequence[Case]) -> None:
    if len({case.patient_id for case in cases}) < len(cases):
        raise SplitError(
            "Making folds: several cases are of one patient, and kfold over cases could put them on both sides. "
            "Use --split patients."
        )


def _kfold(ids: Sequence[str], n_folds: int) -> list[set[str]]:
    from sklearn.model_selection import KFold

    folds = KFold(n_folds, shuffle=True, random_state=SEED).split(ids)
    return [{ids[index] for index in val} for _, val in folds]


def _every_nth(patients: Sequence[str], n_folds: int) -> list[set[str]]:
    return [set(patients[number::n_folds]) for number in range(n_folds)]


def _holdouts(patients: Sequence[str], n_folds: int) -> list[set[str]]:
    import numpy as np

    n_held_out = max(1, round(_HELD_OUT * len(patients)))
    orders = (np.random.default_rng(SEED + number).permutation(len(patients)) for number in range(n_folds))
    return [{patients[index] for index in order[:n_held_out]} for order in orders]
