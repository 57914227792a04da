"""What a kind of target does in a fold: its objective, what is said of a slide, its figures on held-out slides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic, figure_of
from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.evaluation.threshold import Threshold, ThresholdPolicy
from wsi_dino.mil.objective import Objective

PREDICTED_SUBSETS = ("val", "test")


@dataclass(frozen=True)
class SeenFold:
    """What a fold's model says of its slides.

    Attributes:
        cohort: the slides that take part.
        number: of the fold.
        slides: those of each subset.
        scores: of each slide float64 ``(n_scores,)``, see `Objective.scores`; of training slides only where the
            kind `looks_back`.
        objective: of the fold.
        policy: see `choose_threshold`.
    """

    cohort: Cohort
    number: int
    slides: Mapping[str, Sequence[str]]
    scores: Mapping[str, np.ndarray]
    objective: Objective
    policy: ThresholdPolicy

    def rows(self, subsets: Sequence[str]) -> list[CohortRow]:
        """Return the rows of the cohort that are of these subsets, subset by subset."""
        by_slide = {row.slide_id: row for row in self.cohort.rows}
        return [by_slide[slide_id] for subset in subsets for slide_id in self.slides[subset]]


@dataclass(frozen=True)
class FoldReading:
    """What came of reading a fold.

    Attributes:
        predictions: one row for each validation and test slide.
        threshold: the cut on the score, where there is one.
        metrics: figures on the test slides.
        objective: with what the validation slides told.
    """

    predictions: tuple[dict[str, Any], ...]
    threshold: Threshold | None
    metrics: dict[str, Any]
    objective: Objective


class TargetKind(BaseModel, ABC):
    """One kind of target, with its settings.

    Attributes:
        looks_back: it needs the scores of training slides too.
        score_column: column of the predictions by which slides are ranked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    looks_back: ClassVar[bool] = False

    @property
    @abstractmethod
    def score_column(self) -> str:
        """Column of the predictions by which slides are ranked."""

    def truth(self, row: CohortRow) -> tuple[float, ...]:
        """Return what the objective is given of a slide."""
        return row.values

    @abstractmethod
    def objective(self, taught: np.ndarray, *, balanced: bool) -> Objective:
        """Return the objective of a fold, from the truth of its training slides ``(n, k)``."""

    @abstractmethod
    def say(self, scores: np.ndarray, objective: Objective, threshold: float | None) -> dict[str, Any]:
        """Return the columns that tell what is predicted of one slide."""

    @abstractmethod
    def know(self, row: CohortRow) -> dict[str, Any]:
        """Return the columns that tell the truth of one slide."""

    @abstractmethod
    def held_out(self, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> FoldPredictions:
        """Return the predictions of a fold's test rows as arrays."""

    @property
    @abstractmethod
    def statistics(self) -> Mapping[str, Statistic]:
        """The figures of this kind; the first is the one to look at."""

    def threshold(self, seen: SeenFold) -> Threshold | None:
        """Choose the cut on the score, never by test slides."""
        return None

    def after_validation(self, seen: SeenFold) -> Objective:
        """Return the objective with what validation slides tell."""
        return seen.objective

    def figures(self, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> dict[str, Any]:
        """Return the figures of a fold's test rows."""
        predictions = self.held_out(rows, threshold)
        return {name: figure_of(compute, predictions) for name, compute in self.statistics.items()}

    def read_fold(self, seen: SeenFold) -> FoldReading:
        """Say what the fold's model predicts of validation and test slides, and how well."""
        objective, threshold = self.after_validation(seen), self.threshold(seen)
        cut = None if threshold is None else threshold.value
        predictions = []
        for subset in PREDICTED_SUBSETS:
            for row in seen.rows([subset]):
                said = self.say(seen.scores[row.slide_id], objective, cut)
                place = {"fold": seen.number, "subset": subset, "patient_id": row.patient_id, "slide_id": row.slide_id}
                predictions.append({**place, "target": row.target, **self.know(row), **said})
        test_rows = [row for row in predictions if row["subset"] == "test"]
        return FoldReading(tuple(predictions), threshold, self.figures(test_rows, cut), objective)
