"""One fold of a slide task from training to figures, and the summary over folds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.bootstrap import STATISTICS, FoldPredictions, cv_interval
from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.evaluation.metrics import BINARY_METRICS, MULTICLASS_METRICS, binary_metrics, multiclass_metrics
from wsi_dino.evaluation.split import Fold
from wsi_dino.evaluation.threshold import Threshold, ThresholdPolicy, choose_threshold
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.inference import SlideScore, score_slides
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.objective import CrossEntropy
from wsi_dino.mil.training import TrainedFold, TrainingSpec, train_fold
from wsi_dino.mil.training_job import TrainingJob
from wsi_dino.provenance import fingerprint

PREDICTED_SUBSETS = ("val", "test")
ARGMAX = "highest-score"  # the policy of more than two classes


@dataclass(frozen=True)
class FoldResult:
    """Everything one fold found out; JSON-able but for `model` (see `to_record`).

    Attributes:
        fold: its number, from 0.
        predictions: one row for each validation and test slide: ``fold, subset, patient_id,
            slide_id, target, label, score, score_<class> ..., predicted``. ``score`` is the
            probability of the positive class, with more than two classes that of the predicted one.
        threshold: the cut on ``score``; None with more than two classes.
        metrics: figures on the test slides.
        history: one row an epoch, see `TrainedFold`.
        best_epoch: whose weights the model has.
        precision: of the large products in training.
        model: the trained model; None when read back from a record.
    """

    fold: int
    predictions: tuple[dict[str, Any], ...]
    threshold: Threshold | None
    metrics: dict[str, Any]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    precision: str
    model: MilModel | None = None

    def to_record(self) -> dict[str, Any]:
        """Return all but the model as plain JSON-able values; floats survive exactly."""
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


def fold_spec(spec: TrainingSpec, fold_index: int) -> TrainingSpec:
    """Return `spec` with the seed of one fold, so that folds do not share their luck."""
    return spec.model_copy(update={"seed": int(fingerprint(spec.seed, fold_index)[:8], 16)})


def fold_job(cohort: Cohort, fold: Fold, spec: TrainingSpec, fold_index: int) -> TrainingJob:
    """Return what is to be trained for one fold."""
    train, val = (cohort.slides_of(fold.patients(subset)) for subset in ("train", "val"))
    labels = {row.slide_id: row.label for row in cohort.rows}
    taught = [labels[slide_id] for slide_id in train]
    objective = CrossEntropy.of(taught, len(cohort.class_names), balanced=spec.class_balanced)
    truth = {slide_id: (float(label),) for slide_id, label in labels.items()}
    return TrainingJob(fold_spec(spec, fold_index), truth, tuple(train), tuple(val), objective)


def run_fold(
    cohort: Cohort,
    fold: Fold,
    bags: BagStore,
    spec: TrainingSpec,
    *,
    fold_index: int,
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
        threshold_policy: see `choose_threshold`.
        device: where to train, ``cpu`` or an accelerator.
        threads: lanes on a CPU; None = as many as torch would use.
        on_epoch: called with each row of the history.
        trained: what training by `fold_job` gave, where that has been done already.

    Raises:
        CohortError: a slide of the cohort has no tile or no feature file.
        FeatureFileError: a feature file is broken.
    """
    _check_bags(cohort, bags)
    slides = {subset: cohort.slides_of(fold.patients(subset)) for subset in ("train", *PREDICTED_SUBSETS)}
    labels = {row.slide_id: row.label for row in cohort.rows}
    job = fold_job(cohort, fold, spec, fold_index)
    trained = trained or train_fold(
        job.spec, bags, job.truth, job.train_ids, job.val_ids, job.objective,
        device=device, threads=threads, on_epoch=on_epoch,
    )  # fmt: skip
    scored = [s for subset in PREDICTED_SUBSETS for s in slides[subset]]
    scores = {
        score.slide_id: score for score in score_slides(trained.model, bags, scored, device=device, threads=threads)
    }
    trained.model.cpu()
    y_val, p_val = _arrays([labels[s] for s in slides["val"]], [scores[s] for s in slides["val"]])
    binary = len(cohort.class_names) == 2
    threshold = choose_threshold(y_val, p_val[:, 1], threshold_policy) if binary else None
    y_test, p_test = _arrays([labels[s] for s in slides["test"]], [scores[s] for s in slides["test"]])
    metrics = binary_metrics(y_test, p_test[:, 1], threshold.value) if threshold else multiclass_metrics(y_test, p_test)
    rows = _rows(cohort, slides, scores, threshold, fold_index)
    return FoldResult(
        fold_index, rows, threshold, metrics, trained.history, trained.best_epoch, trained.precision, trained.model
    )


def _check_bags(cohort: Cohort, bags: BagStore) -> None:
    without = sorted(set(cohort.slide_ids) - set(bags.slide_ids))
    if without:
        raise CohortError(
            f"Training on target {cohort.target!r}: {len(without)} labelled slides have no features "
            f"({', '.join(without[:5])}). Embed them, or leave them out with Cohort.only."
        )


def _arrays(labels: Sequence[int], scores: Sequence[SlideScore]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(labels, np.int64), np.stack([score.probabilities for score in scores])


def _rows(
    cohort: Cohort,
    slides: Mapping[str, Sequence[str]],
    scores: Mapping[str, SlideScore],
    threshold: Threshold | None,
    fold_index: int,
) -> tuple[dict[str, Any], ...]:
    by_slide = {row.slide_id: row for row in cohort.rows}
    return tuple(
        {
            "fold": fold_index,
            "subset": subset,
            **prediction_row(by_slide[slide_id], scores[slide_id], cohort.class_names, threshold),
        }
        for subset in PREDICTED_SUBSETS
        for slide_id in slides[subset]
    )


def prediction_row(
    row: CohortRow, score: SlideScore, class_names: Sequence[str], threshold: Threshold | None
) -> dict[str, Any]:
    """Return the columns of one prediction, from ``patient_id`` to ``predicted``."""
    predicted = predicted_label(score.probabilities, threshold)
    return {
        "patient_id": row.patient_id,
        "slide_id": row.slide_id,
        "target": row.target,
        "label": row.label,
        **score_columns(score.probabilities, class_names, threshold),
        "predicted": class_names[predicted],
    }


def score_columns(
    probabilities: np.ndarray, class_names: Sequence[str], threshold: Threshold | None
) -> dict[str, float]:
    """Return ``score`` and ``score_<class>`` of one slide."""
    score = probabilities[1] if threshold else probabilities.max()
    each = {f"score_{name}": float(p) for name, p in zip(class_names, probabilities, strict=True)}
    return {"score": float(score), **each}


def predicted_label(probabilities: np.ndarray, threshold: Threshold | None) -> int:
    """Return the class index: by `threshold` on the positive class, or the highest probability."""
    return int(probabilities[1] >= threshold.value) if threshold else int(probabilities.argmax())


def test_predictions(result: FoldResult, class_names: Sequence[str]) -> FoldPredictions:
    """Return the test rows of a fold as arrays."""
    rows = [row for row in result.predictions if row["subset"] == "test"]
    columns = ["score"] if len(class_names) == 2 else [f"score_{name}" for name in class_names]
    scores = np.array([[row[column] for column in columns] for row in rows], np.float64)
    return FoldPredictions(
        np.array([row["label"] for row in rows], np.int64),
        scores[:, 0] if len(class_names) == 2 else scores,
        [row["patient_id"] for row in rows],
        result.threshold.value if result.threshold else 0.5,
    )


def summarise(
    results: Sequence[FoldResult],
    class_names: Sequence[str],
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
    names = [n for n in (BINARY_METRICS if len(class_names) == 2 else MULTICLASS_METRICS) if n in STATISTICS]
    predictions = [test_predictions(result, class_names) for result in results]
    summary = {}
    for name in names:
        interval = cv_interval(predictions, name, n_resamples=n_resamples, level=level, seed=seed)
        values = [result.metrics[name] for result in results]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        summary[name] = {**asdict(interval), "std": std}
    return {
        "folds": [_fold_row(result, len(p.y_true)) for result, p in zip(results, predictions, strict=True)],
        "summary": summary,
        "interval": f"{level:.0%} percentile interval, {n_resamples} bootstrap resamples of patients within folds",
        "threshold_policy": results[0].threshold.policy if results[0].threshold else ARGMAX,
    }


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
