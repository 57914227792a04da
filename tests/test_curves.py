"""ROC curves of the report against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from wsi_dino.evaluation.curves import ScoredFold, area_under, mean_roc, roc_points


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40))
def test_points_and_area_are_those_of_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    is_positive = np.array([row[0] for row in rows])
    score = np.array([row[1] for row in rows]) / 6
    if is_positive.all() or not is_positive.any():
        return
    fpr, tpr = roc_points(is_positive, score)
    expected_fpr, expected_tpr, _ = roc_curve(is_positive, score, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected_fpr)
    np.testing.assert_allclose(tpr, expected_tpr)
    assert area_under(fpr, tpr) == pytest.approx(roc_auc_score(is_positive, score))


def _fold(n: int, separation: float, seed: int) -> ScoredFold:
    rng = np.random.default_rng(seed)
    is_positive = np.arange(n) % 2 == 1
    score = rng.normal(size=n) + separation * is_positive
    return ScoredFold(f"fold {seed}", is_positive, score, np.array([f"P{index}" for index in range(n)]))


def test_mean_lies_within_its_band_and_rises() -> None:
    mean = mean_roc([_fold(40, 1.0, seed) for seed in range(5)])
    assert mean is not None
    assert (mean.low <= mean.high).all()
    assert ((mean.low - 0.05 <= mean.mean) & (mean.mean <= mean.high + 0.05)).all()
    assert (np.diff(mean.mean) >= -1e-12).all()
    assert (mean.mean[0], mean.mean[-1]) == (0.0, 1.0)


def test_band_narrows_with_patients() -> None:
    widths = [np.mean(m.high - m.low) for n in (20, 400) if (m := mean_roc([_fold(n, 1.0, 0)])) is not None]
    assert widths[1] < widths[0] / 2


def test_fold_of_one_class_is_passed_over() -> None:
    one_class = ScoredFold("x", np.ones(4, bool), np.arange(4.0), np.array(list("abcd")))
    assert mean_roc([one_class]) is None
    assert mean_roc([one_class, _fold(20, 1.0, 0)]) is not None
