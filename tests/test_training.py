"""Training: reproducible, independent of threads and storage, and able to learn what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from toy_bags import N_WITNESSES, SMALL, make_bags

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.metrics import auc
from wsi_dino.feature_file import FeatureFile, write_feature_file
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.inference import score_slides
from wsi_dino.mil.objective import CoxPartialLikelihood, CrossEntropy, DiscreteTimeHazard, Objective
from wsi_dino.mil.training import TrainedFold, TrainingSpec, build_model, measure_scale, resolve_precision, train_fold


def _classes(truth: dict[str, tuple[int]], ids: Sequence[str], spec: TrainingSpec, n_classes: int = 2) -> CrossEntropy:
    return CrossEntropy.of([truth[slide_id][0] for slide_id in ids], n_classes, balanced=spec.class_balanced)


def _train(spec: TrainingSpec = SMALL, store: BagStore | None = None, threads: int = 1) -> TrainedFold:
    made, cohort = make_bags()
    truth = {row.slide_id: (row.label,) for row in cohort}
    ids = cohort.slide_ids
    return train_fold(spec, store or made, truth, ids[:40], ids[40:], _classes(truth, ids[:40], spec), threads=threads)


def _same(first: TrainedFold, second: TrainedFold) -> bool:
    states = first.model.state_dict(), second.model.state_dict()
    return first.history == second.history and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_model_to_the_bit_whatever_the_threads(precision: str) -> None:
    spec = SMALL.model_copy(update={"epochs": 4, "precision": precision})
    first = _train(spec)
    assert _same(first, _train(spec))
    assert _same(first, _train(spec, threads=3))
    assert not _same(first, _train(spec.model_copy(update={"seed": 1})))
    assert first.precision == precision


def test_same_model_from_memory_and_from_disk(tmp_path: Path) -> None:
    store, _ = make_bags()
    paths = {slide: tmp_path / f"{slide}.h5" for slide in store.slide_ids}
    for slide, path in paths.items():
        features = store.features(slide)
        write_feature_file(path, FeatureFile(features, np.zeros((len(features), 2), np.int64), {"encoder": "toy"}))
    spec = SMALL.model_copy(update={"epochs": 3, "max_tiles": 20})
    first = _train(spec)
    assert _same(first, _train(spec, BagStore(paths)))
    assert _same(first, _train(spec, BagStore(paths, memory_bytes=0)))


def test_threads_of_the_caller_are_given_back() -> None:
    before = torch.get_num_threads()
    _train(SMALL.model_copy(update={"epochs": 1}), threads=2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("relu", [True, False])
def test_it_learns_and_attends_to_the_witnesses(relu: bool) -> None:
    spec = SMALL.model_copy(update={"relu": relu})
    trained = _train(spec)
    store, cohort = make_bags(seed=1)
    scores = score_slides(trained.model, store, cohort.slide_ids)
    assert auc(cohort.labels, np.array([score.probabilities[1] for score in scores])) > 0.95
    ranks = [
        auc(np.arange(len(score.attention)) < N_WITNESSES, score.attention)
        for score, label in zip(scores, cohort.labels, strict=True)
        if label
    ]
    assert np.mean(ranks) > 0.9
    assert scores[0].attention_weights.sum() == pytest.approx(1, abs=1e-5)


def test_three_classes_are_learnt() -> None:
    store, cohort = make_bags(90, n_classes=3)
    truth = {row.slide_id: (row.label,) for row in cohort}
    ids = cohort.slide_ids
    trained = train_fold(SMALL, store, truth, ids[:60], ids[60:], _classes(truth, ids[:60], SMALL, 3))
    predicted = [int(score.probabilities.argmax()) for score in score_slides(trained.model, store, ids[60:])]
    assert np.mean(np.array(predicted) == cohort.labels[60:]) > 0.8


def test_best_epoch_is_kept_and_patience_ends_it() -> None:
    spec = SMALL.model_copy(update={"epochs": 200, "patience": 5, "min_epochs": 8})
    store, cohort = make_bags(signal=0.0)  # nothing to learn: it overfits at once
    truth = {row.slide_id: (row.label,) for row in cohort}
    ids = cohort.slide_ids
    trained = train_fold(spec, store, truth, ids[:40], ids[40:], _classes(truth, ids[:40], spec))
    losses = [row["val_loss"] for row in trained.history]
    assert len(losses) < 200
    assert trained.best_epoch == len(losses) - 1 - 5
    assert trained.best_epoch >= 7
    assert losses[trained.best_epoch] == min(losses[7:])


def test_validation_loss_is_that_of_the_model_given_back() -> None:
    spec = SMALL.model_copy(update={"precision": "fp32", "epochs": 5, "class_balanced": False})
    trained = _train(spec)
    store, cohort = make_bags()
    scores = score_slides(trained.model, store, cohort.slide_ids[40:])
    losses = [-np.log(s.probabilities[label]) for s, label in zip(scores, cohort.labels[40:], strict=True)]
    assert trained.history[trained.best_epoch]["val_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_features_of_any_scale_give_the_same_result() -> None:
    store, _ = make_bags()
    scaled = BagStore.of_arrays({slide: store.features(slide) * np.float32(64) for slide in store.slide_ids})
    spec = SMALL.model_copy(update={"epochs": 3, "precision": "fp32"})
    plain, large = _train(spec), _train(spec, scaled)
    assert [row["val_loss"] for row in large.history] == pytest.approx([row["val_loss"] for row in plain.history])


def test_scale_is_the_root_mean_square_of_the_training_features() -> None:
    store, cohort = make_bags()
    everything = np.concatenate([store.features(slide) for slide in cohort.slide_ids[:5]])
    assert measure_scale(store, cohort.slide_ids[:5]) == pytest.approx(np.sqrt(np.mean(everything**2)), rel=1e-6)
    zeros = BagStore.of_arrays({"a": np.zeros((3, 4), np.float32)})
    assert measure_scale(zeros, ["a"]) == 1.0


def test_weights_come_from_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = build_model(SMALL, 4, 2), build_model(SMALL, 4, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, second.head.weight)


def test_learning_rate_out_of_all_bounds_is_said() -> None:
    with pytest.raises(ConfigError, match=r"lower --lr"):
        _train(SMALL.model_copy(update={"learning_rate": 1e30, "epochs": 3}))


def test_spec_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError):
        TrainingSpec(learning_ratee=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        TrainingSpec(dropout=1.0)
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")


def test_published_order_of_classic_set_is_learnt(shared_data: Path) -> None:
    """MUSK1, one split: far above chance on real bags of 2 to 40 instances."""
    musk = np.load(shared_data / "mil_classic" / "musk1.npz")
    x, bag, label = musk["X"].astype(np.float32), musk["bag"], musk["bag_label"].astype(int)
    names = np.unique(bag)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    store = BagStore.of_arrays({f"b{i}": x[bag == name] for i, name in enumerate(names)})
    order = [f"b{i}" for i in np.random.default_rng(0).permutation(len(names))]
    truth = {f"b{i}": (int(value),) for i, value in enumerate(label)}
    spec = TrainingSpec(epochs=40)
    trained = train_fold(spec, store, truth, order[:60], order[60:72], _classes(truth, order[:60], spec))
    test = order[72:]
    scores = [score.probabilities[1] for score in score_slides(trained.model, store, test)]
    assert auc(np.array([truth[slide][0] for slide in test]), np.array(scores)) > 0.75


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_coupled_loss_is_the_same_however_bags_are_joined_to_units(
    precision: Literal["fp32", "bf16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cohort = make_bags()
    random, ids = np.random.default_rng(0), cohort.slide_ids
    truth = {slide_id: (float(random.integers(1, 20)), float(random.random() < 0.6)) for slide_id in ids}
    spec = SMALL.model_copy(update={"precision": precision, "epochs": 3, "dropout": 0.0, "min_epochs": 3})
    objective = CoxPartialLikelihood(horizon=5)
    together = []
    for rows in ((1, 1), (10**6, 10**6)):
        monkeypatch.setattr("wsi_dino.mil.packed_training._UNIT_ROWS_CPU", rows)
        together.append(train_fold(spec, store, truth, ids[:40], ids[40:], objective, threads=1).history)
    for apart, joined in zip(*together, strict=True):
        assert apart == pytest.approx(joined, rel=1e-3 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize(
    "objective", [CoxPartialLikelihood(horizon=5), DiscreteTimeHazard(cuts=(5,), end=10, horizon=5)]
)
def test_survival_is_learnt(objective: Objective) -> None:
    store, cohort = make_bags(120)
    random = np.random.default_rng(1)
    truth = {row.slide_id: (random.exponential(2 if row.label else 20), 1.0) for row in cohort}
    ids = cohort.slide_ids
    trained = train_fold(SMALL, store, truth, ids[:80], ids[80:], objective)
    outputs = np.stack([score.outputs for score in score_slides(trained.model, store, ids[80:])])
    risk = objective.scores(torch.from_numpy(outputs))[:, 0].numpy()
    assert auc(cohort.labels[80:], risk) > 0.9
