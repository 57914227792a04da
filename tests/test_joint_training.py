"""Models trained together are the models trained alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_bags import SMALL, make_bags

from wsi_dino.errors import ConfigError
from wsi_dino.mil import packed_training
from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.joint_training import TrainingJob, train_together
from wsi_dino.mil.objective import CoxPartialLikelihood, CrossEntropy
from wsi_dino.mil.stacked import StackedModels, StackedUnit
from wsi_dino.mil.training import TrainedFold, TrainingSpec, train_fold

FP32 = SMALL.model_copy(update={"precision": "fp32", "epochs": 5, "min_epochs": 2})


def _jobs(spec: TrainingSpec, n: int = 3) -> list[TrainingJob]:
    """Jobs with other slides, other numbers of steps and other seeds each."""
    _, cohort = make_bags()
    truth, ids = {row.slide_id: (float(row.label),) for row in cohort}, cohort.slide_ids
    jobs = []
    for number in range(n):
        train, val = ids[number : 30 + 5 * number], ids[45 : 52 + number]
        objective = CrossEntropy.of([int(truth[slide][0]) for slide in train], 2)
        jobs.append(TrainingJob(spec.model_copy(update={"seed": number}), truth, train, val, objective))
    return jobs


def _alone(job: TrainingJob) -> TrainedFold:
    store, _ = make_bags()
    return train_fold(job.spec, store, job.truth, job.train_ids, job.val_ids, job.objective, threads=1)


@pytest.mark.parametrize(
    "change", [{}, {"gated": False, "relu": True}, {"dropout": 0.0, "rescale": False}, {"max_tiles": 9}]
)
def test_each_model_is_the_one_trained_alone(monkeypatch: pytest.MonkeyPatch, change: dict[str, object]) -> None:
    monkeypatch.setattr(packed_training, "_UNIT_ROWS_CPU", (10**9, 10**9))  # a step in one piece, as on an accelerator
    jobs = _jobs(FP32.model_copy(update=change))
    together = train_together(jobs, make_bags()[0], device="cpu")
    for job, joint in zip(jobs, together, strict=True):
        alone = _alone(job)
        assert joint.best_epoch == alone.best_epoch
        for ours, theirs in zip(joint.history, alone.history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(joint.model.state_dict()[name], value, rtol=1e-3, atol=2e-5)


def test_a_loss_that_compares_bags_is_taken_over_each_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_training, "_UNIT_ROWS_CPU", (10**9, 10**9))
    jobs = []
    for job in _jobs(FP32):
        survival = {slide: (1.0 + index % 7, float(index % 3 > 0)) for index, slide in enumerate(job.truth)}
        jobs.append(replace(job, truth=survival, objective=CoxPartialLikelihood(horizon=3.0)))
    for job, joint in zip(jobs, train_together(jobs, make_bags()[0], device="cpu"), strict=True):
        for ours, theirs in zip(joint.history, _alone(job).history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_a_model_that_stops_early_leaves_the_others_alone() -> None:
    spec = FP32.model_copy(update={"epochs": 12, "patience": 1, "min_epochs": 1, "learning_rate": 0.02})
    jobs = _jobs(spec)
    together = train_together(jobs, make_bags()[0], device="cpu")
    lengths = [len(each.history) for each in together]
    assert len(set(lengths)) > 1
    assert min(lengths) < 12
    for job, joint in zip(jobs, together, strict=True):
        (single,) = train_together([job], make_bags()[0], device="cpu")
        assert [row["val_loss"] for row in joint.history] == pytest.approx(
            [row["val_loss"] for row in single.history], rel=1e-3
        )


def test_it_learns_in_bfloat16_too() -> None:
    store, _ = make_bags()
    jobs = _jobs(SMALL.model_copy(update={"precision": "bf16"}))
    seen: list[int] = []
    for each in train_together(jobs, store, device="cpu", on_epoch=lambda job, row: seen.append(job)):
        assert each.precision == "bf16"
        assert each.history[each.best_epoch]["val_loss"] < 0.2
    assert set(seen) == {0, 1, 2}


def test_stacked_logits_are_those_of_each_model_and_padding_does_not_matter() -> None:
    torch.manual_seed(0)
    models = [ABMIL(6, 3, 8, 4).eval() for _ in range(2)]
    for scale, model in enumerate(models):
        model.feature_scale.fill_(scale + 0.5)
    bags = [[torch.randn(4, 6), torch.randn(2, 6)], [torch.randn(3, 6)]]
    features, owner = torch.zeros(2, 9, 6), torch.full((2, 9), -1)
    for row, mine in enumerate(bags):
        features[row, : sum(map(len, mine))] = torch.cat(mine)
        owner[row, : sum(map(len, mine))] = torch.repeat_interleave(
            torch.arange(len(mine)), torch.tensor([len(bag) for bag in mine])
        )
    features[owner < 0] = 1e6
    stack = StackedModels(models)
    logits = stack.forward(stack.flat, stack.feature_scale, StackedUnit(features, owner, 2))
    for row, mine in enumerate(bags):
        for place, bag in enumerate(mine):
            expected = models[row](bag[None], torch.ones(1, len(bag), dtype=torch.bool)).outputs
            torch.testing.assert_close(logits[row, place], expected[0], rtol=1e-4, atol=1e-5)


def test_a_learning_rate_out_of_all_bounds_is_said() -> None:
    jobs = _jobs(FP32.model_copy(update={"learning_rate": 1e30}), n=2)
    with pytest.raises(ConfigError, match="never a finite number"):
        train_together(jobs, make_bags()[0], device="cpu")
