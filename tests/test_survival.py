"""Curves, tests and calibration of survival against those of scipy, against counting, and on planted truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.stats import CensoredData, ecdf, logrank

from wsi_dino.evaluation.survival import brier_at, calibration_at, censoring_weights, compare_groups, kaplan_meier


def _outcomes(n: int, seed: int, rate: np.ndarray | float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    happens, lost = random.exponential(1 / np.broadcast_to(rate, n)), random.uniform(0, 25, n)
    return np.minimum(happens, lost), (happens <= lost).astype(int)


def _scipy(time: np.ndarray, event: np.ndarray) -> CensoredData:
    return CensoredData(uncensored=time[event == 1], right=time[event == 0])


def test_curve_is_that_of_scipy() -> None:
    time, event = _outcomes(60, 0)
    time = np.ceil(time)  # ties
    curve, other = kaplan_meier(time, event), ecdf(_scipy(time, event)).sf
    assert np.interp(other.quantiles, curve["time"], curve["survival"]) == pytest.approx(other.probabilities)
    assert curve["survival"][0] == 1
    assert all(low <= s <= high for low, s, high in zip(curve["low"], curve["survival"], curve["high"], strict=True))


def test_log_rank_is_that_of_scipy() -> None:
    group = np.arange(80) % 2
    time, event = _outcomes(80, 1, np.where(group == 1, 0.2, 0.08))
    found = compare_groups(time, event, group, ("low", "high"))
    expected = logrank(_scipy(time[group == 0], event[group == 0]), _scipy(time[group == 1], event[group == 1]))
    assert found["log_rank_p"] == pytest.approx(expected.pvalue)
    assert [g["n"] for g in found["groups"]] == [40, 40]
    assert sum(g["n_events"] for g in found["groups"]) == event.sum()
    for one, index in zip(found["groups"], (0, 1), strict=True):
        counts = [(time[group == index] >= tick).sum() for tick in one["at_risk"]["time"]]
        assert one["at_risk"]["n"] == counts
        assert one["at_risk"]["n"][0] == 40


def test_one_group_alone_has_no_p_value() -> None:
    time, event = _outcomes(20, 2)
    found = compare_groups(time, event, np.zeros(20, int), ("low", "high"))
    assert found["log_rank_p"] is None
    assert [group["name"] for group in found["groups"]] == ["low"]


def test_true_probabilities_are_calibrated_and_doubled_ones_are_not() -> None:
    rate = np.random.default_rng(3).uniform(0.02, 0.3, 4000)
    time, event = _outcomes(4000, 3, rate)
    for predicted, fits in ((np.exp(-rate * 6), True), (np.exp(-rate * 3), False)):
        rows = calibration_at(time, event, predicted, 6.0)
        assert len(rows) == 4
        held = [row["low"] - 0.01 <= row["predicted"] <= row["high"] + 0.01 for row in rows]
        assert all(held) == fits
        assert [row["n"] for row in rows] == [1000] * 4


def test_a_group_that_nobody_watched_long_enough_has_no_observed_survival() -> None:
    time, event = np.array([*range(1, 11), *range(21, 31)], float), np.array([0] * 10 + [1] * 10)
    first, second = calibration_at(time, event, np.repeat([0.2, 0.8], 10), 15.0)
    assert first["observed"] is None
    assert second["observed"] == 1


def test_brier_without_censoring_is_the_mean_square_and_with_it_stays_near() -> None:
    random = np.random.default_rng(4)
    rate = random.uniform(0.02, 0.3, 3000)
    happens, lost = random.exponential(1 / rate), random.uniform(0, 15, 3000)
    predicted, ids = np.exp(-rate * 5), [f"p{i}" for i in range(3000)]
    everybody = np.ones(3000, int)
    whole = brier_at(happens, everybody, predicted, ids, 5.0, n_resamples=100)
    assert whole["value"] == pytest.approx(np.mean(((happens > 5) - predicted) ** 2))
    time, event = np.minimum(happens, lost), (happens <= lost).astype(int)
    part = brier_at(time, event, predicted, ids, 5.0, n_resamples=100)
    assert part["value"] == pytest.approx(whole["value"], abs=0.01)
    assert part["low"] < part["value"] < part["high"]
    assert part["value"] < part["of_kaplan_meier"]


def test_weights_of_censoring_add_up_to_everybody() -> None:
    time, event = _outcomes(2000, 5)
    assert censoring_weights(time, event, 5.0).mean() == pytest.approx(1, abs=0.02)
    assert (censoring_weights(time, np.ones(2000), 5.0) == 1).all()


def test_p_values_of_groups_drawn_by_chance_are_even() -> None:
    random = np.random.default_rng(6)
    p = []
    for seed in range(60):
        time, event = _outcomes(40, 100 + seed)
        p.append(compare_groups(time, event, random.permutation(np.arange(40) % 2), "ab")["log_rank_p"])
    assert stats.kstest(p, "uniform").pvalue > 0.01
