"""One fold of a slide task from training to figures, and the summary over folds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.split import Fold
from wsi_dino.evaluation.threshold import Threshold, ThresholdPolicy
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.class_target import ClassTarget
from wsi_dino.mil.inference import score_slides
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.objective import Objective
from wsi_dino.mil.target_kind import PREDICTED_SUBSETS, SeenFold, TargetKind
from wsi_dino.mil.targets import target_of
from wsi_dino.mil.training import TrainedFold, TrainingSpec, train_fold
from wsi_dino.mil.training_job import TrainingJob
from wsi_dino.provenance import fingerprint

ARGMAX = "highest-score"  # the policy of more than two classes


@dataclass(frozen=True)
class FoldResult:
    """Everything one fold found out; JSON-able but for `model` (see `to_record`).

    Attributes:
        fold: its number, from 0.
        predictions: one row for each validation and test slide: ``fold, subset, patient_id,
            slide_id, target``, then truth and what is said, as the kind of target has it.
        threshold: the cut on the score, where there is one.
        metrics: figures on the test slides.
        history: one row an epoch, see `TrainedFold`.
        best_epoch: whose weights the model has.
        precision: of the large products in training.
        model: the trained model; None when read back from a record.
        objective: what the model's outputs mean; likewise.
    """

    fold: int
    predictions: tuple[dict[str, Any], ...]
    threshold: Threshold | None
    metrics: dict[str, Any]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    precision: str
    model: MilModel | None = None
    objective: Objective | None = None

    def to_record(self) -> dict[str, Any]:
        """Return all but model and objective as plain JSON-able values; floats survive exactly."""
        record = {name: getattr(self, name) for name in ("fold", "metrics", "best_epoch", "precision")}
        threshold = asdict(self.threshold) if self.threshold else None
        return {**record, "predictions": list(self.predictions), "history": list(self.history), "threshold": threshold}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], model: MilModel | None = None) -> FoldResult:
        """Rebuild from `to_record`, with the model where it is needed."""
        threshold = Threshold(**record["threshold"]) if record["threshold"] else None
        rows, history = tuple(record["predictions"]), tuple(record["history"])
        numbers = (record["metrics"], history, record["best_epoch"], record["precision"])
        return cls(record["fold"], rows, threshold, *numbers, model)

    def judged(self, target: TargetKind) -> FoldResult:
        """Return it with the figures that `target` has now: a metric may have been added since it was trained."""
        rows = [row for row in self.predictions if row["subset"] == "test"]
        return replace(self, metrics=target.figures(rows, self.threshold.value if self.threshold else None))


def fold_spec(spec: TrainingSpec, fold_index: int) -> TrainingSpec:
    """Return `spec` with the seed of one fold, so that folds do not share their luck."""
    return spec.model_copy(update={"seed": int(fingerprint(spec.seed, fold_index)[:8], 16)})


def run_fold(
    cohort: Cohort,
    fold: Fold,
    bags: BagStore,
    spec: TrainingSpec,
    *,
    fold_index: int,
    target: TargetKind | None = None,
    threshold_policy: ThresholdPolicy = "youden-on-validation",
    device: str | torch.device = "cpu",
    threads: int | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    trained: TrainedFold | None = None,
) -> FoldResult:
    """Train on one fold, choose its threshold on validation, predict validation and test.

    The result depends on the arguments alone (not on other folds), so a fold may be done again or
    elsewhere; on one kind of device it is then the same bit for bit, whatever `threads`.

    Args:
        cohort: slides with labels; each must have at least one tile in `bags`.
        fold: patients of train, val and test.
        bags: features.
        spec: architecture and recipe; its seed is mixed with `fold_index`.
        fold_index: number of the fold, from 0.
        target: what is predicted; None = what the cohort tells.
        threshold_policy: see `choose_threshold`.
        device: where to train, ``cpu`` or an accelerator.
        threads: lanes on a CPU; None = as many as torch would use.
        on_epoch: called with each row of the history.
        trained: what training by `FoldPlan.job` gave, where that has been done already.

    Raises:
        CohortError: a slide of the cohort has no tile or no feature file.
        FeatureFileError: a feature file is broken.
    """
    plan = plan_fold(cohort, fold, bags, spec, fold_index=fold_index, target=target, threshold_policy=threshold_policy)
    job = plan.job
    trained = trained or train_fold(
        job.spec, bags, job.truth, job.train_ids, job.val_ids, job.objective,
        device=device, threads=threads, on_epoch=on_epoch,
    )  # fmt: skip
    return finish_fold(plan, trained, bags, device=device, threads=threads)


@dataclass(frozen=True)
class FoldPlan:
    """What is to be trained in a fold.

    Attributes:
        cohort: slides with labels.
        number: of the fold.
        spec: with the seed of the fold.
        target: what is predicted.
        slides: of train, val and test.
        truth: of each slide, as the objective wants it.
        objective: of training.
        threshold_policy: see `choose_threshold`.
    """

    cohort: Cohort
    number: int
    spec: TrainingSpec
    target: TargetKind
    slides: Mapping[str, Sequence[str]]
    truth: Mapping[str, tuple[float, ...]]
    objective: Objective
    threshold_policy: ThresholdPolicy

    @property
    def job(self) -> TrainingJob:
        """The training alone: test slides are not in it."""
        return TrainingJob(
            self.spec, self.truth, tuple(self.slides["train"]), tuple(self.slides["val"]), self.objective
        )  # fmt: skip


def plan_fold(
    cohort: Cohort, fold: Fold, bags: BagStore, spec: TrainingSpec, *, fold_index: int, target: TargetKind | None,
    threshold_policy: ThresholdPolicy,
) -> FoldPlan:  # fmt: skip
    """Return what is to be trained; see `run_fold`."""
    _check_bags(cohort, bags)
    kind = target or target_of(cohort)
    slides = {subset: cohort.slides_of(fold.patients(subset)) for subset in ("train", *PREDICTED_SUBSETS)}
    truth = {row.slide_id: kind.truth(row) for row in cohort.rows}
    objective = kind.objective(np.array([truth[s] for s in slides["train"]]), balanced=spec.class_balanced)
    return FoldPlan(
        cohort, fold_index, fold_spec(spec, fold_index), kind, slides, truth, objective, threshold_policy
    )  # fmt: skip


def finish_fold(
    plan: FoldPlan, trained: TrainedFold, bags: BagStore, *, device: str | torch.device = "cpu",
    threads: int | None = None,
) -> FoldResult:  # fmt: skip
    """Apply the trained model to the fold's slides and read what it says; see `run_fold`."""
    subsets = ("train", *PREDICTED_SUBSETS) if plan.target.looks_back else PREDICTED_SUBSETS
    wanted = [slide_id for subset in subsets for slide_id in plan.slides[subset]]
    scored = score_slides(trained.model, bags, wanted, device=device, threads=threads)
    trained.model.cpu()
    outputs = torch.from_numpy(np.stack([score.outputs for score in scored]))
    objective = plan.objective
    if plan.target.looks_back:
        n_taught = len(plan.slides["train"])
        objective = objective.after_training(
            outputs[:n_taught], torch.tensor([plan.truth[slide_id] for slide_id in wanted[:n_taught]])
        )
    scores = dict(zip(wanted, objective.scores(outputs).numpy(), strict=True))
    seen = SeenFold(plan.cohort, plan.number, plan.slides, scores, objective, plan.threshold_policy)
    read = plan.target.read_fold(seen)
    return FoldResult(
        plan.number, read.predictions, read.threshold, read.metrics, trained.history, trained.best_epoch,
        trained.precision, trained.model, read.objective,
    )  # fmt: skip


def _check_bags(cohort: Cohort, bags: BagStore) -> None:
    without = sorted(set(cohort.slide_ids) - set(bags.slide_ids))
    if without:
        raise CohortError(
            f"Training on target {cohort.target!r}: {len(without)} labelled slides have no features "
            f"({', '.join(without[:5])}). Embed them, or leave them out with Cohort.only."
        )


def summarise(
    results: Sequence[FoldResult],
    target: TargetKind,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the parts of ``metrics.json`` that come from the folds.

    Returns:
        ``folds``: one row a fold (``fold, auc, accuracy ..., threshold, best_epoch, n_test``), and
        ``summary``: for each figure ``value`` (mean over folds), ``low`` and ``high`` (patient
        bootstrap, see `cv_interval`) and ``std`` (between folds, n - 1); then ``interval`` and
        ``threshold_policy`` in words.
    """
    results = sorted(results, key=lambda result: result.fold)
    rows = [[row for row in result.predictions if row["subset"] == "test"] for result in results]
    predictions = held_out(results, target)
    summary = {}
    for name, compute in target.statistics.items():
        interval = cv_interval(
            predictions, compute, n_resamples=n_resamples, level=level, seed=seed,
            skip_unknown=not isinstance(target, ClassTarget),
        )  # fmt: skip
        values = [value for result in results if not np.isnan(value := result.metrics[name])]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        summary[name] = {**asdict(interval), "std": std}
    return {
        "folds": [_fold_row(result, len(tested)) for result, tested in zip(results, rows, strict=True)],
        "summary": summary,
        "interval": f"{level:.0%} percentile interval, {n_resamples} bootstrap resamples of patients within folds",
        "threshold_policy": results[0].threshold.policy if results[0].threshold else ARGMAX,
    }


def held_out(results: Sequence[FoldResult], target: TargetKind) -> list[FoldPredictions]:
    """Return the test predictions of each fold as arrays."""
    return [
        target.held_out(
            [row for row in result.predictions if row["subset"] == "test"],
            result.threshold.value if result.threshold else None,
        )
        for result in results
    ]


def _fold_row(result: FoldResult, n_test: int) -> dict[str, Any]:
    threshold = result.threshold.value if result.threshold else None
    return {
        "fold": result.fold,
        **result.metrics,
        "threshold": threshold,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "n_test": n_test,
    }
