"""A probe of volumes in every fold: linear, k nearest neighbours, or attention over the slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.attention_probe import AttentionSpec, fit_attention_probe
from wsi_dino.evaluation.knn import KS, Metric, Weighting, choose_setting, knn_scores
from wsi_dino.evaluation.label_evaluation import EvaluationSpec, FoldScores
from wsi_dino.evaluation.label_folds import FoldRows
from wsi_dino.evaluation.linear_probe import LinearProbeSpec, LogisticSpec
from wsi_dino.evaluation.probing import probe_folds
from wsi_dino.radiology.ct_features import Pool

ProbeName = Literal["linear", "knn"]


class CtSpec(BaseModel):
    """How features of volumes become figures.

    Attributes:
        probe: ``linear`` (the paper's, with logistic regression as a check) or ``knn``.
        pool: how the slices of a volume become its vector; ``attention`` is learnt with the labels and is then the
            probe itself.
        linear, check, attention: settings of the models.
        ks, metrics, weightings: of k-NN, of which the best by mean AUC on validation is taken.
        evaluation: thresholds, intervals.
        ct_clip: report CT-CLIP's figures too, which are optimistic.
        n_folds: folds by patient, where the data set has no split of its own.
        seed: of folds and of the validation patients.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    probe: ProbeName = "linear"
    pool: Pool = "mean"
    linear: LinearProbeSpec = LinearProbeSpec()
    check: LogisticSpec = LogisticSpec()
    attention: AttentionSpec = AttentionSpec()
    ks: tuple[int, ...] = KS
    metrics: tuple[Metric, ...] = ("cosine",)
    weightings: tuple[Weighting, ...] = ("uniform", "softmax")
    evaluation: EvaluationSpec = EvaluationSpec()
    ct_clip: bool = True
    n_folds: int = Field(default=5, ge=2)
    seed: int = 0

    def check_sense(self) -> None:
        """Refuse what does not go together.

        Raises:
            ConfigError: k-NN of attention pooling, or a `k` below 1.
        """
        if self.pool == "attention" and self.probe == "knn":
            raise ConfigError(
                "--pool attention is learnt with the labels, so that there is nothing to look neighbours up by. "
                "Use --probe linear, or --pool mean, max or mean+std with --probe knn."
            )
        if any(k < 1 for k in self.ks):
            raise ConfigError(f"--k {min(self.ks)}: at least one neighbour has to vote.")


@dataclass(frozen=True)
class ProbedFolds:
    """What the probe said in each fold.

    Attributes:
        folds: scores of validation and test.
        facts: of the model of each fold, JSON-able.
        check: logistic regression beside the paper's probe; empty for the others.
        models: of the paper's probe or of attention pooling; empty for k-NN.
    """

    folds: list[FoldScores]
    facts: list[dict[str, Any]]
    check: list[FoldScores]
    models: list[Any]


@dataclass(frozen=True)
class ProbeData:
    """What a probe learns from.

    Attributes:
        targets: float64 ``(n, n_labels)`` of 0, 1 and NaN.
        patient_id: ``(n,)``.
        features: float32 ``(n, embed_dim)``; empty for attention.
        read_slices: row number to float32 ``(n_slices, embed_dim)``, for attention.
    """

    targets: np.ndarray
    patient_id: Sequence[str]
    features: np.ndarray
    read_slices: Callable[[int], np.ndarray]


def probe_volumes(data: ProbeData, rows: Sequence[FoldRows], spec: CtSpec) -> ProbedFolds:
    """Train or look up in every fold.

    Args:
        data: features, labels and patients.
        rows: of each fold.
        spec: the settings.

    Raises:
        ConfigError: settings that do not go together, or features that are not finite.
    """
    spec.check_sense()
    if spec.pool == "attention":
        return _by_attention(data, rows, spec)
    if spec.probe == "knn":
        return _by_neighbours(data, rows, spec)
    folds, models = probe_folds(data.features, data.targets, data.patient_id, rows, spec.linear)
    check, check_models = probe_folds(data.features, data.targets, data.patient_id, rows, spec.check)
    facts = [{**model.facts, "check_c": other.facts["c"]} for model, other in zip(models, check_models, strict=True)]
    return ProbedFolds(folds, facts, check, models)


def _by_neighbours(data: ProbeData, rows: Sequence[FoldRows], spec: CtSpec) -> ProbedFolds:
    folds, facts = [], []
    for each in rows:
        bank, labels = data.features[each.train], data.targets[each.train]
        choice = choose_setting(
            bank, labels, data.features[each.val], data.targets[each.val],
            ks=spec.ks, metrics=spec.metrics, weightings=spec.weightings,
        )  # fmt: skip
        scored = [knn_scores(bank, labels, data.features[part], choice.setting) for part in (each.test, each.val)]
        folds.append(_fold(data, each, *scored))
        chosen = {"k": choice.setting.k, "metric": choice.setting.metric, "weighting": choice.setting.weighting}
        facts.append({"model": "k-NN", **chosen, "bank": len(bank), "on_validation": list(choice.table)})
    return ProbedFolds(folds, facts, [], [])


def _by_attention(data: ProbeData, rows: Sequence[FoldRows], spec: CtSpec) -> ProbedFolds:
    folds, facts, models = [], [], []
    for each in rows:
        model = fit_attention_probe(
            data.read_slices, data.targets, each.train.tolist(), each.val.tolist(), spec.attention
        )
        scored = [model.scores(data.read_slices, part.tolist()) for part in (each.test, each.val)]
        folds.append(_fold(data, each, *scored))
        facts.append(model.facts)
        models.append(model)
    return ProbedFolds(folds, facts, [], models)


def _fold(data: ProbeData, rows: FoldRows, scores: np.ndarray, val_scores: np.ndarray) -> FoldScores:
    return FoldScores(
        targets=data.targets[rows.test],
        scores=scores,
        patient_id=[data.patient_id[row] for row in rows.test],
        val_targets=data.targets[rows.val],
        val_scores=val_scores,
        rows=rows.test,
    )
