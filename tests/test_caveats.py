"""Reasons to doubt a figure are named when they hold, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wsi_dino.evaluation.caveats import Evidence, find_caveats

SOUND = Evidence(
    n_patients=1000, test_patients_of_class=[{"neg": 100, "pos": 100}] * 5, n_validation_patients=[100] * 5,
    n_used=1000, n_left_out=10, auc={"value": 0.8, "low": 0.75, "high": 0.85}, attention_evenness=[0.5] * 9,
    epochs_kept=[(40, 100)] * 5,
)  # fmt: skip


def test_sound_evidence_has_no_caveat() -> None:
    assert find_caveats(SOUND) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"random_weights": True}, "random weights"),
        ({"n_patients": 60}, "Only 60 patients"),
        ({"test_patients_of_class": [{"neg": 90, "pos": 3}]}, "tests on 3 patients"),
        ({"n_validation_patients": [100, 4]}, "Validation holds 4"),
        ({"auc": {"value": 0.7, "low": 0.5, "high": 0.9}}, "0.40 wide"),
        ({"auc": {"value": 1.0, "low": 1.0, "high": 1.0}}, "no error was made"),
        ({"has_patient_id": False}, "no patient_id"),
        ({"n_left_out": 500}, "500 labelled slides (33%)"),
        ({"attention_evenness": [0.999] * 9}, "nearly even"),
        ({"epochs_kept": [(100, 100), (40, 100)]}, "In 1 of 2 folds"),
    ],
)
def test_each_doubt_is_named(change: dict[str, Any], said: str) -> None:
    caveats = find_caveats(replace(SOUND, **change))
    assert len(caveats) == 1
    assert said in caveats[0]


def test_unknown_interval_is_no_reason_to_fail() -> None:
    assert find_caveats(replace(SOUND, auc={"value": None, "low": None, "high": None})) == []
