"""Labels dealt anew among patients: what the whole pipeline finds where there is nothing to find."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.mil.material import Material


def permute_labels(material: Material, seed: int) -> Material:
    """Return the material with its labels permuted among patients, under a task name that says so.

    Where each patient has one label, these are dealt anew. Where a patient's slides differ, patients
    with as many slides exchange their lists of labels. Subsets that the task fixes are permuted each
    by itself. The results lie in a folder of their own, never in that of the true labels.

    Args:
        material: what would have been learnt from.
        seed: of the permutation.
    """
    task = material.task.model_copy(update={"name": f"{material.task.name}-permuted-{seed}"})
    cohort = permuted_cohort(material.cohort, seed, material.subset_of)
    return replace(material, task=task, cohort=cohort, permuted_labels=seed)


def permuted_cohort(cohort: Cohort, seed: int, subset_of: Mapping[str, str] | None = None) -> Cohort:
    """Return the cohort with labels (and their spelling) exchanged among patients.

    Examples:
        >>> rows = tuple(CohortRow(f"S{i}", f"P{i}", "np"[i > 3], int(i > 3)) for i in range(8))
        >>> permuted_cohort(Cohort(rows, ("n", "p"), "x"), seed=1).counts()
        {'n': 4, 'p': 4}
    """
    groups = _exchangeable(cohort, subset_of or {})
    new: dict[str, CohortRow] = {}
    for number, patients in enumerate(groups):
        order = np.random.default_rng([seed, number]).permutation(len(patients))
        for patient, index in zip(patients, order, strict=True):
            givers = cohort.patients[patients[index]]
            for position, row in enumerate(cohort.patients[patient]):
                giver = givers[position % len(givers)]
                new[row.slide_id] = replace(row, target=giver.target, label=giver.label, values=giver.values)
    return replace(cohort, rows=tuple(new[row.slide_id] for row in cohort.rows))


def _exchangeable(cohort: Cohort, subset_of: Mapping[str, str]) -> Sequence[list[str]]:
    """Group the patients that may exchange their labels."""
    by_patient = not cohort.conflicting_patients
    groups: dict[Hashable, list[str]] = {}
    for patient, rows in cohort.patients.items():
        key = (subset_of.get(patient, ""), 0 if by_patient else len(rows))
        groups.setdefault(key, []).append(patient)
    return [groups[key] for key in sorted(groups, key=str)]
