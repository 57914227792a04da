"""Net benefit against counting, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from wsi_dino.evaluation.decision_curve import THRESHOLDS, decision_section, net_benefit


def test_equals_counting() -> None:
    rng = np.random.default_rng(0)
    y, score = rng.integers(0, 2, 80), rng.random(80)
    for threshold in (0.1, 0.35, 0.8):
        _, fp, _, tp = confusion_matrix(y, score >= threshold).ravel()
        expected = tp / 80 - fp / 80 * threshold / (1 - threshold)
        assert net_benefit(y, score, np.array([threshold]))[0] == pytest.approx(expected)


def test_perfect_score_gives_the_prevalence_and_none_gives_0() -> None:
    y = np.array([0, 0, 0, 1])
    assert net_benefit(y, y.astype(float), np.array(THRESHOLDS)) == pytest.approx(0.25)
    assert net_benefit(y, np.zeros(4), np.array(THRESHOLDS)) == pytest.approx(0)


def test_acting_on_all_breaks_even_at_the_prevalence() -> None:
    section = decision_section(np.array([0, 0, 0, 1]), np.full(4, 0.5))
    by_threshold = dict(zip(section["threshold"], section["net_benefit_of_all"], strict=True))
    assert by_threshold[0.25] == pytest.approx(0)
    assert by_threshold[0.2] > 0 > by_threshold[0.3]
