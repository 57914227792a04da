"""Figures of survival, numbers and several labels against lifelines, scipy, scikit-learn and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from lifelines.utils import concordance_index
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval, figure_of
from wsi_dino.evaluation.concordance import SURVIVAL_STATISTICS, weighted_concordance
from wsi_dino.evaluation.regression import REGRESSION_STATISTICS
from wsi_dino.evaluation.several_labels import label_statistics


def _survival(n: int, seed: int, n_times: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    time, event = random.integers(1, n_times, n).astype(float), (random.random(n) < 0.6).astype(float)
    return time, event, random.integers(0, 6, n) / 5


def _brute(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    right = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / pairs


@pytest.mark.parametrize("n_times", [4, 12, 1000])
def test_c_index_with_ties_is_that_of_lifelines_and_of_counting_pairs(n_times: int) -> None:
    for seed in range(5):
        time, event, risk = _survival(40, seed, n_times)
        found = float(weighted_concordance(time, event, risk, np.ones((1, 40)))[0])
        assert found == pytest.approx(_brute(time, event, risk))
        assert found == pytest.approx(concordance_index(time, -risk, event))


def test_a_weight_is_a_patient_that_stands_so_often() -> None:
    time, event, risk = _survival(30, 3, 8)
    weights = np.random.default_rng(0).integers(0, 4, (6, 30)).astype(float)
    fold = FoldPredictions(event.astype(int), risk, [f"p{i}" for i in range(30)], values=np.stack([time, event], 1))
    number = FoldPredictions(event.astype(int), risk, fold.patient_id, values=time[:, None])
    cases = [(SURVIVAL_STATISTICS, fold), *[(REGRESSION_STATISTICS, number)]]
    for statistics, given in cases:
        for name, compute in statistics.items():
            for row, found in zip(weights, compute(given, weights), strict=True):
                again = np.repeat(np.arange(30), row.astype(int))
                drawn = FoldPredictions(given.y_true[again], risk[again], [], values=given.truth[again])
                assert found == pytest.approx(figure_of(compute, drawn)), name


def test_more_pairs_than_fit_at_once_are_counted_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    time, event, risk = _survival(50, 1, 9)
    whole = weighted_concordance(time, event, risk, np.ones((2, 50)))
    monkeypatch.setattr("wsi_dino.evaluation.concordance._ROWS_AT_ONCE", 7)
    assert weighted_concordance(time, event, risk, np.ones((2, 50))) == pytest.approx(whole)


def test_nothing_to_compare_is_nan() -> None:
    assert np.isnan(weighted_concordance(np.array([1.0, 2]), np.zeros(2), np.zeros(2), np.ones((1, 2)))).all()


def test_figures_of_numbers_are_those_of_scikit_learn_and_scipy() -> None:
    random = np.random.default_rng(4)
    truth = np.round(random.normal(1e4, 3, 60))
    said = np.round(truth + random.normal(0, 2, 60))
    fold = FoldPredictions(np.zeros(60, int), said, [], values=truth[:, None])
    found = {name: figure_of(compute, fold) for name, compute in REGRESSION_STATISTICS.items()}
    expected = {
        "mae": mean_absolute_error(truth, said), "rmse": root_mean_squared_error(truth, said),
        "r2": r2_score(truth, said), "pearson": stats.pearsonr(truth, said)[0],
        "spearman": stats.spearmanr(truth, said)[0],
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_a_model_that_always_says_the_same_has_no_correlation() -> None:
    truth = np.arange(5.0)[:, None]
    fold = FoldPredictions(np.zeros(5, int), np.full(5, 0.1), [], values=truth)
    found = {name: figure_of(compute, fold) for name, compute in REGRESSION_STATISTICS.items()}
    assert np.isnan(found["pearson"])
    assert np.isnan(found["spearman"])
    assert found["r2"] < 0


def test_labels_count_where_they_are_known() -> None:
    random = np.random.default_rng(5)
    truth = random.choice([0, 1, np.nan], (50, 2))
    scores = random.random((50, 2))
    fold = FoldPredictions(np.zeros(50, int), scores, [str(i) for i in range(50)], values=truth)
    statistics = label_statistics(("a", "b"))
    found = {name: figure_of(compute, fold) for name, compute in statistics.items()}
    each = []
    for label in range(2):
        known = np.isfinite(truth[:, label])
        each.append(roc_auc_score(truth[known, label], scores[known, label]))
    assert found == pytest.approx({"auc": np.mean(each), "auc[a]": each[0], "auc[b]": each[1]})


def test_a_fold_without_a_figure_is_passed_over_only_where_that_is_asked() -> None:
    full = FoldPredictions(
        np.zeros(4, int), np.array([[0.1], [0.9], [0.2], [0.8]]), list("abcd"), values=np.array([[0.0], [1], [0], [1]])
    )
    none = FoldPredictions(np.zeros(2, int), np.array([[0.1], [0.9]]), list("ef"), values=np.ones((2, 1)))
    statistic = label_statistics(("x",))["auc[x]"]
    assert np.isnan(cv_interval([full, none], statistic, n_resamples=100).value)
    assert cv_interval([full, none], statistic, n_resamples=100, skip_unknown=True).value == 1
