"""The centre is told where the features hold it, and not where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_dino.evaluation.centre_probe import CentreProbe, probe_centres


def _probe(shift: float, n_centres: int = 3, n: int = 120) -> CentreProbe:
    rng = np.random.default_rng(0)
    centre_of = {f"S{i}": f"c{i % n_centres}" for i in range(n)}
    patient_of = {f"S{i}": f"P{i // (2 * n_centres)}-{i % n_centres}" for i in range(n)}  # two slides each
    features = {s: rng.normal(size=16) + shift * (np.arange(16) == int(c[1])) for s, c in centre_of.items()}
    probe = probe_centres(features, centre_of, patient_of, n_resamples=300)
    assert probe is not None
    return probe


@pytest.mark.parametrize("n_centres", [2, 3])
def test_centre_in_the_features_is_told(n_centres: int) -> None:
    probe = _probe(6.0, n_centres)
    assert probe.tells
    assert probe.balanced_accuracy.value > 0.95
    assert probe.chance == 1 / n_centres


@pytest.mark.parametrize("n_centres", [2, 3])
def test_features_without_centre_give_chance(n_centres: int) -> None:
    probe = _probe(0.0, n_centres)
    assert not probe.tells
    assert abs(probe.balanced_accuracy.value - probe.chance) < 0.15


def test_what_is_of_the_patient_is_not_taken_for_the_centre() -> None:
    """Slides of one patient are alike; folds by slide would tell the centre by knowing the patient again."""
    rng = np.random.default_rng(1)
    of_patient = {f"P{p}": rng.normal(size=64) for p in range(20)}
    patient_of = {f"S{i}": f"P{i % 20}" for i in range(200)}
    centre_of = {slide: f"c{int(patient[1:]) % 2}" for slide, patient in patient_of.items()}
    features = {slide: of_patient[patient] + rng.normal(0, 0.1, 64) for slide, patient in patient_of.items()}
    probe = probe_centres(features, centre_of, patient_of, n_resamples=200)
    assert probe is not None
    assert probe.balanced_accuracy.value < 0.8


def test_too_few_centres_or_patients_give_no_answer() -> None:
    features = {f"S{i}": np.zeros(2) for i in range(8)}
    patient_of = {slide: slide for slide in features}
    assert probe_centres(features, dict.fromkeys(features, "0"), patient_of) is None
    few = {slide: "0" if i < 6 else "1" for i, slide in enumerate(features)}
    assert probe_centres(features, few, patient_of) is None
