"""Attention pooling finds the slice that matters, where the mean does not."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.attention_probe import AttentionSpec, fit_attention_probe
from wsi_dino.evaluation.metrics import auc

_SPEC = AttentionSpec(hidden_dim=32, attention_dim=16, learning_rate=3e-3, epochs=25)


@pytest.fixture(scope="module")
def bags() -> tuple[list[np.ndarray], np.ndarray]:
    """Thirty noisy vectors a bag; of positive ones a single vector carries the sign of its label."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, (240, 2)).astype(float)
    made = [random.normal(size=(30, 12)).astype(np.float32) for _ in targets]
    for bag, (first, second) in zip(made, targets, strict=True):
        bag[3, 0] += 8 * first
        bag[20, 1] += 8 * second
    return made, targets


def test_a_single_slice_decides(bags: tuple) -> None:
    made, targets = bags
    model = fit_attention_probe(made.__getitem__, targets, range(140), range(140, 180), _SPEC)
    scores = model.scores(made.__getitem__, range(180, 240))
    assert [auc(targets[180:, label], scores[:, label]) > 0.9 for label in (0, 1)] == [True, True]
    marked = next(bag for bag, target in zip(made[180:], targets[180:], strict=True) if target.tolist() == [1, 0])
    weights = model.attention(marked)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert weights.argmax() == 3


def test_the_same_seed_gives_the_same_scores_and_unknown_labels_do_not_teach(bags: tuple) -> None:
    made, targets = bags
    unknown = targets.copy()
    unknown[:70, 1] = np.nan
    spec = _SPEC.model_copy(update={"epochs": 2, "min_epochs": 1})
    runs = [fit_attention_probe(made.__getitem__, unknown, range(100), range(100, 140), spec) for _ in range(2)]
    first, second = (model.scores(made.__getitem__, range(180, 190)) for model in runs)
    assert (first == second).all()
    assert np.isfinite(first).all()


def test_nothing_to_validate_on_is_refused(bags: tuple) -> None:
    with pytest.raises(ConfigError, match="validate"):
        fit_attention_probe(bags[0].__getitem__, bags[1], range(10), [], _SPEC)
