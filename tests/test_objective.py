"""Losses against independent ones: by hand, by lifelines, by scikit-learn, by brute force, by finite differences."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter
from pydantic import TypeAdapter
from sklearn.metrics import log_loss, mean_squared_error

from wsi_dino.mil.objective import (
    AnyObjective,
    BinaryPerLabel,
    CoxPartialLikelihood,
    CrossEntropy,
    DiscreteTimeHazard,
    Objective,
    SquaredError,
)

RANDOM = np.random.default_rng(0)
TIMES = torch.tensor(
    np.stack([RANDOM.integers(1, 9, 30), RANDOM.random(30) < 0.6], 1).astype(np.float32)
)  # many ties, on purpose
EVEN = torch.full((30,), 1 / 30)
CASES: list[tuple[Objective, torch.Tensor]] = [
    (CrossEntropy.of([0, 1, 1, 2], 3), torch.tensor(RANDOM.integers(0, 3, (30, 1)), dtype=torch.float32)),
    (
        BinaryPerLabel(negative_weights=(1, 2), positive_weights=(3, 1)),
        torch.tensor(RANDOM.choice([0, 1, np.nan], (30, 2)), dtype=torch.float32),
    ),
    (SquaredError(mean=3, scale=2), torch.tensor(RANDOM.normal(3, 2, (30, 1)), dtype=torch.float32)),
    (DiscreteTimeHazard(cuts=(2, 4, 6), end=8, horizon=5), TIMES),
    (CoxPartialLikelihood(horizon=5), TIMES),
]


@pytest.mark.parametrize(("objective", "truth"), CASES, ids=lambda case: getattr(case, "kind", ""))
def test_gradient_is_that_of_finite_differences(objective: Objective, truth: torch.Tensor) -> None:
    outputs = torch.tensor(np.random.default_rng(1).normal(size=(30, objective.n_outputs)))
    weights = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss, slope = objective.loss_and_gradient(outputs, truth, weights)
    assert slope.shape == outputs.shape
    step = 1e-6
    for bag, output in [(0, 0), (7, objective.n_outputs - 1), (29, 0)]:
        moved = outputs.clone()
        moved[bag, output] += step
        assert (objective.loss(moved, truth, weights) - loss) / step == pytest.approx(
            float(slope[bag, output]), abs=1e-4
        )


@pytest.mark.parametrize(("objective", "truth"), CASES, ids=lambda case: getattr(case, "kind", ""))
def test_it_survives_json_and_reports_what_it_names(objective: Objective, truth: torch.Tensor) -> None:
    again = TypeAdapter(AnyObjective).validate_json(objective.model_dump_json())
    assert again == objective
    assert type(again) is type(objective)
    scores = objective.scores(torch.zeros(4, objective.n_outputs))
    assert scores.shape == (4, len(objective.score_names))


@pytest.mark.parametrize(("objective", "truth"), CASES, ids=lambda case: getattr(case, "kind", ""))
def test_only_a_coupled_loss_changes_when_bags_are_taken_apart(objective: Objective, truth: torch.Tensor) -> None:
    outputs = torch.tensor(np.random.default_rng(2).normal(size=(30, objective.n_outputs)))
    apart = sum(float(objective.loss(outputs[i : i + 10], truth[i : i + 10], EVEN[:10])) for i in (0, 10, 20))
    together = float(objective.loss(outputs, truth, EVEN))
    assert (apart != pytest.approx(together, rel=1e-5)) == objective.couples_bags


def test_cross_entropy_is_that_of_scikit_learn() -> None:
    outputs, labels = torch.tensor(RANDOM.normal(size=(30, 3))), RANDOM.integers(0, 3, 30)
    objective = CrossEntropy.of(labels.tolist(), 3, balanced=False)
    found = float(objective.loss(outputs, torch.tensor(labels)[:, None].float(), EVEN.double()))
    assert found == pytest.approx(log_loss(labels, torch.softmax(outputs, 1).numpy()))


def test_by_hand_and_by_autograd_the_gradient_of_cross_entropy_is_one() -> None:
    objective, truth = CASES[0]
    outputs, weights = torch.randn(30, 3), torch.rand(30)
    by_hand = objective.loss_and_gradient(outputs, truth, weights)
    for mine, other in zip(by_hand, Objective.loss_and_gradient(objective, outputs, truth, weights), strict=True):
        torch.testing.assert_close(mine, other)


def test_unknown_labels_neither_count_nor_teach() -> None:
    objective, truth = CASES[1]
    outputs = torch.randn(30, 2, dtype=torch.float64)
    _loss, slope = objective.loss_and_gradient(outputs, truth, EVEN)
    assert torch.isfinite(slope).all()
    assert (slope[truth.isnan()] == 0).all()
    assert (slope[~truth.isnan()] != 0).all()
    plain, expected = BinaryPerLabel(negative_weights=(1, 1), positive_weights=(1, 1)), 0.0
    for label in range(2):
        known = ~truth[:, label].isnan()
        p = torch.sigmoid(outputs[known, label]).numpy()
        expected += log_loss(truth[known, label].numpy(), p, labels=[0, 1]) * int(known.sum()) / 30 / 2
    assert float(plain.loss(outputs, truth, EVEN)) == pytest.approx(expected)


def test_a_value_comes_back_in_its_own_unit() -> None:
    values = RANDOM.normal(50, 12, 40)
    objective = SquaredError.of(values)
    exact = torch.tensor((values - objective.mean) / objective.scale)[:, None]
    assert objective.scores(exact)[:, 0].numpy() == pytest.approx(values)
    said = torch.tensor(RANDOM.normal(size=(40, 1)))
    loss = float(objective.loss(said, torch.tensor(values)[:, None], torch.full((40,), 1 / 40)))
    in_unit = mean_squared_error(values, objective.scores(said)[:, 0].numpy())
    assert loss * objective.scale**2 == pytest.approx(in_unit)


def test_likelihood_of_intervals_by_hand() -> None:
    objective = DiscreteTimeHazard(cuts=(10.0, 20.0), end=30, horizon=15)
    hazard = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    outputs = torch.logit(hazard)
    expected = {
        (5, 1): 0.1,
        (10, 1): 0.1,  # a time on a cut belongs to the earlier interval
        (15, 1): 0.9 * 0.2,
        (25, 1): 0.9 * 0.8 * 0.3,
        (5, 0): 0.9**0.5,
        (15, 0): 0.9 * 0.8**0.5,
        (25, 0): 0.9 * 0.8 * 0.7**0.5,
    }
    for (time, event), likelihood in expected.items():
        loss = objective.loss(outputs, torch.tensor([[float(time), float(event)]]), torch.ones(1))
        assert float(loss) == pytest.approx(-np.log(likelihood)), (time, event)
    risk, survival = objective.scores(outputs)[0].tolist()
    assert survival == pytest.approx(0.9 * 0.8**0.5)
    assert risk == pytest.approx(1 - (0.9 + 0.9 * 0.8 + 0.9 * 0.8 * 0.7) / 3)
    assert float(objective.survival_at(outputs, 99)[0]) == pytest.approx(0.9 * 0.8 * 0.7)


def test_one_hazard_for_all_is_the_actuarial_life_table() -> None:
    objective, truth = CASES[3]
    outputs = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=200, tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective.loss(outputs.expand(30, 4), truth, EVEN)
        loss.backward()
        return loss

    optimizer.step(closure)
    time, event = truth.numpy().T
    for k, (low, high) in enumerate([(0, 2), (2, 4), (4, 6), (6, 99)]):
        inside = (time > low) & (time <= high)
        n_events, n_censored = (inside & (event == 1)).sum(), (inside & (event == 0)).sum()
        life_table = n_events / ((time > low).sum() - n_censored / 2)
        assert float(torch.sigmoid(outputs.detach()[0, k])) == pytest.approx(life_table, abs=1e-4)


def test_cuts_are_quantiles_of_the_event_times_alone() -> None:
    truth = np.array([[time, 1] for time in range(1, 101)] + [[1000, 0]] * 50, float)
    objective = DiscreteTimeHazard.of(truth, n_intervals=4, horizon=30)
    assert objective.cuts == pytest.approx((25.75, 50.5, 75.25))
    assert objective.end == 1000
    same = DiscreteTimeHazard.of(np.array([[5.0, 1]] * 9 + [[9.0, 0]]), n_intervals=4, horizon=3)
    assert same.n_outputs == 2  # quantiles that fall together make one cut


@pytest.mark.parametrize("weighted", [False, True])
def test_partial_likelihood_with_ties_is_that_of_lifelines(weighted: bool) -> None:
    random = np.random.default_rng(5)
    table = pd.DataFrame({"x": random.normal(size=60), "z": random.normal(size=60)})
    table["time"], table["event"] = random.integers(1, 12, 60), random.random(60) < 0.7
    table["w"] = random.integers(1, 4, 60).astype(float) if weighted else 1.0
    fitted = CoxPHFitter().fit(table, "time", "event", weights_col="w")
    eta = torch.tensor(table[["x", "z"]].to_numpy() @ fitted.params_.to_numpy())[:, None]
    truth = torch.tensor(table[["time", "event"]].to_numpy(np.float64))
    weights = torch.tensor(table["w"].to_numpy())
    # inside the logarithm ours has weights over their mean: a constant for each event
    constant = float((weights * truth[:, 1]).sum() * weights.mean().log())
    found = -float(CoxPartialLikelihood(horizon=1).loss(eta, truth, weights)) - constant
    assert found == pytest.approx(fitted.log_likelihood_, rel=1e-6)


def test_without_ties_the_partial_likelihood_is_the_product_by_brute_force() -> None:
    random = np.random.default_rng(6)
    time, event, eta = random.permutation(12) + 1.0, random.random(12) < 0.6, random.normal(size=12)
    expected = 0.0
    for i in np.flatnonzero(event):
        expected -= np.log(np.exp(eta[i]) / sum(np.exp(eta[j]) for j in range(12) if time[j] >= time[i]))
    truth = torch.tensor(np.stack([time, event], 1))
    found = CoxPartialLikelihood(horizon=1).loss(torch.tensor(eta)[:, None], truth, torch.ones(12))
    assert float(found) == pytest.approx(expected)


def test_partial_likelihood_knows_log_hazards_only_up_to_a_constant_and_never_overflows() -> None:
    objective, truth = CASES[4]
    outputs = torch.randn(30, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    here, there = (objective.loss_and_gradient(outputs + shift, truth, EVEN) for shift in (0.0, 500.0))
    torch.testing.assert_close(here, there)
    nobody = truth.clone()
    nobody[:, 1] = 0
    loss, slope = objective.loss_and_gradient(outputs, nobody, EVEN)
    assert float(loss) == 0
    assert (slope == 0).all()


def test_baseline_of_cox_is_breslows_of_lifelines() -> None:
    random = np.random.default_rng(7)
    table = pd.DataFrame({"x": random.normal(size=80), "time": random.permutation(80) + 1.0})
    table["event"] = random.random(80) < 0.6
    fitted = CoxPHFitter().fit(table, "time", "event")
    eta = torch.tensor(table["x"].to_numpy() * fitted.params_["x"])[:, None]
    truth = torch.tensor(table[["time", "event"]].to_numpy(np.float64))
    objective = CoxPartialLikelihood(horizon=40).after_training(eta, truth)
    expected = fitted.predict_survival_function(table, times=[40]).to_numpy()[0]
    assert objective.scores(eta)[:, 1].numpy() == pytest.approx(expected, rel=1e-6)


def test_discrete_and_cox_order_pairs_alike_when_hazards_are_proportional() -> None:
    log_hazard = torch.linspace(-2, 2, 7, dtype=torch.float64)
    discrete = DiscreteTimeHazard(cuts=(1.0, 2.0), end=3, horizon=1)
    outputs = torch.logit(1 - torch.exp(-torch.tensor([0.1, 0.2, 0.3]) * log_hazard.exp()[:, None]))
    for objective, given in ((discrete, outputs), (CoxPartialLikelihood(horizon=1), log_hazard[:, None])):
        risk = objective.scores(given)[:, 0].tolist()
        assert all(first < second for first, second in combinations(risk, 2))
