"""Holm's correction by its definition, and that it keeps its promise."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_dino.evaluation.multiple_testing import holm


def _by_definition(p_values: list[float]) -> list[float]:
    """The smallest level at which the step-down procedure rejects each, found one by one."""
    m = len(p_values)
    result = []
    for p in p_values:
        before = [q for q in p_values if q <= p]
        steps = [min(1.0, (m - k) * q) for k, q in enumerate(sorted(before))]
        result.append(max(steps))
    return result


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_step_down_procedure(seed: int) -> None:
    p_values = np.random.default_rng(seed).random(7) ** 2
    assert holm(p_values.tolist()) == pytest.approx(_by_definition(p_values.tolist()))


def test_worked_example() -> None:
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])


def test_one_test_stays_and_order_does_not_matter() -> None:
    assert holm([0.04]) == [0.04]
    p_values = [0.2, 0.001, 0.03, 0.03]
    assert holm(p_values[::-1]) == holm(p_values)[::-1]


def test_unknown_ones_do_not_count() -> None:
    adjusted = holm([0.02, float("nan"), 0.5])
    assert adjusted[0] == pytest.approx(0.04)
    assert np.isnan(adjusted[1])
    assert holm([]) == []


def test_false_rejections_stay_at_the_level() -> None:
    rng = np.random.default_rng(0)
    any_rejected = [min(holm(rng.random(6).tolist())) <= 0.05 for _ in range(3000)]
    assert 0.035 <= np.mean(any_rejected) <= 0.065
