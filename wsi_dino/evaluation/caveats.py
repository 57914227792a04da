"""What a reader must know before quoting a figure: reasons to doubt it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_FEW_PATIENTS = 100
_FEW_OF_A_CLASS_IN_TEST = 5
_FEW_IN_VALIDATION = 10
_MANY_LEFT_OUT = 0.1
_EVEN_ATTENTION = 0.99
_WIDE_INTERVAL = 0.2


@dataclass(frozen=True)
class Evidence:
    """What the figures rest on.

    Attributes:
        n_patients: all of them.
        test_patients_of_class: for each fold, patients of each class in its test subset.
        n_validation_patients: for each fold.
        n_used, n_left_out: labelled slides that took part, and that did not.
        auc: ``value, low, high`` of the figure to look at.
        figure: what that is called.
        has_classes: whether the target is a class, so that a threshold is chosen.
        has_patient_id: whether the labels name patients.
        random_weights: whether the encoder had no trained weights.
        attention_evenness: for each test slide, 0 (one tile) to 1 (all tiles alike).
        epochs_kept: for each fold, (epoch kept, epochs allowed), counted from 1.
    """

    n_patients: int
    test_patients_of_class: Sequence[Mapping[str, int]]
    n_validation_patients: Sequence[int]
    n_used: int
    n_left_out: int
    auc: Mapping[str, Any]
    figure: str = "AUC"
    has_classes: bool = True
    has_patient_id: bool = True
    random_weights: bool = False
    attention_evenness: Sequence[float] = ()
    epochs_kept: Sequence[tuple[int, int]] = ()


def find_caveats(evidence: Evidence) -> list[str]:
    """Return the reasons to doubt the figures, the gravest first; empty when there are none.

    Examples:
        >>> few = Evidence(20, [{"neg": 3, "pos": 2}], [2], 20, 0, {"value": 0.9})
        >>> find_caveats(few)[0]
        'Only 20 patients: one or two of them can move every figure here.'
    """
    return [*_about_weights(evidence), *_about_numbers(evidence), *_about_data(evidence), *_about_training(evidence)]


def _about_weights(evidence: Evidence) -> Iterator[str]:
    if evidence.random_weights:
        yield (
            "The encoder had random weights: these figures tell what chance and colour give, "
            "nothing about a trained encoder."
        )


def _about_numbers(evidence: Evidence) -> Iterator[str]:
    if evidence.n_patients < _FEW_PATIENTS:
        yield f"Only {evidence.n_patients} patients: one or two of them can move every figure here."
    fewest = min((min(fold.values()) for fold in evidence.test_patients_of_class if fold), default=0)
    if evidence.test_patients_of_class and fewest < _FEW_OF_A_CLASS_IN_TEST:
        whom = "of a class" if evidence.has_classes else "with the event"
        yield (
            f"A fold tests on {fewest} patients {whom}: its own {evidence.figure} is coarse; look at the mean and its "
            "interval."
        )
    smallest = min(evidence.n_validation_patients, default=0)
    if evidence.n_validation_patients and smallest < _FEW_IN_VALIDATION:
        shaky = "the epoch and the threshold chosen on them are shaky; AUC does not depend on the threshold."
        yield f"Validation holds {smallest} patients: {shaky if evidence.has_classes else 'the epoch chosen is shaky.'}"
    low, high = evidence.auc.get("low"), evidence.auc.get("high")
    if low is not None and high is not None and high - low > _WIDE_INTERVAL:
        yield f"The interval of the {evidence.figure} is {high - low:.2f} wide: this cohort cannot tell encoders apart."
    if low is not None and low == high:
        same = f"The {evidence.figure} is the same in every resample (no error was made)"
        yield f"{same}: the true interval is wider than it looks."


def _about_data(evidence: Evidence) -> Iterator[str]:
    if not evidence.has_patient_id:
        yield (
            "The labels have no patient_id: if a patient has several slides, training and test share patients "
            "and every figure is too good."
        )
    share = evidence.n_left_out / max(1, evidence.n_used + evidence.n_left_out)
    if share > _MANY_LEFT_OUT:
        yield f"{evidence.n_left_out} labelled slides ({share:.0%}) were left out: see why below."


def _about_training(evidence: Evidence) -> Iterator[str]:
    if len(evidence.attention_evenness) and float(np.median(evidence.attention_evenness)) > _EVEN_ATTENTION:
        yield "Attention is nearly even over the tiles of most slides: heatmaps show little, the model averages."
    at_end = sum(kept >= allowed for kept, allowed in evidence.epochs_kept)
    if at_end:
        n_folds = len(evidence.epochs_kept)
        yield f"In {at_end} of {n_folds} folds the last epoch was the best: more --epochs might do better."
