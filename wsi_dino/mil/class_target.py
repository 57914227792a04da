"""One of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic
from wsi_dino.evaluation.cohort import CohortRow
from wsi_dino.evaluation.metrics import METRICS, binary_metrics, metric_names, multiclass_metrics
from wsi_dino.evaluation.threshold import Threshold, choose_threshold
from wsi_dino.mil.objective import CrossEntropy, Objective
from wsi_dino.mil.target_kind import SeenFold, TargetKind


class ClassTarget(TargetKind):
    """Classes, of which a slide has one.

    ``score`` is the probability of the positive class, with more than two classes that of the predicted one.

    Attributes:
        names: label 0 first.
    """

    kind: Literal["classes"] = "classes"
    names: tuple[str, ...]

    @property
    def is_binary(self) -> bool:
        """Whether there are two classes."""
        return len(self.names) == 2

    @property
    def score_column(self) -> str:
        """The score."""
        return "score"

    @property
    def statistics(self) -> Mapping[str, Statistic]:
        """Those of two classes or of more."""
        return {name: METRICS[name].compute for name in metric_names(len(self.names))}

    def truth(self, row: CohortRow) -> tuple[float, ...]:
        """Return the class index."""
        return (float(row.label),)

    def objective(self, taught: np.ndarray, *, balanced: bool) -> CrossEntropy:
        """Return cross-entropy, its classes balanced or not."""
        return CrossEntropy.of(taught[:, 0].astype(int).tolist(), len(self.names), balanced=balanced)

    def threshold(self, seen: SeenFold) -> Threshold | None:
        """Choose the cut of two classes on validation."""
        if not self.is_binary:
            return None
        rows = seen.rows(["val"])
        scores = np.array([seen.scores[row.slide_id][1] for row in rows])
        return choose_threshold(np.array([row.label for row in rows], np.int64), scores, seen.policy)

    def know(self, row: CohortRow) -> dict[str, Any]:
        """Return ``label``."""
        return {"label": row.label}

    def say(self, scores: np.ndarray, objective: Objective, threshold: float | None) -> dict[str, Any]:
        """Return ``score``, ``score_<class>`` and ``predicted``: by `threshold`, or the highest probability."""
        predicted = int(scores.argmax()) if threshold is None else int(scores[1] >= threshold)
        score = scores.max() if threshold is None else scores[1]
        each = {f"score_{name}": float(p) for name, p in zip(self.names, scores, strict=True)}
        return {"score": float(score), **each, "predicted": self.names[predicted]}

    def held_out(self, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> FoldPredictions:
        """Return labels and scores."""
        columns = ["score"] if self.is_binary else [f"score_{name}" for name in self.names]
        scores = np.array([[row[column] for column in columns] for row in rows], np.float64)
        return FoldPredictions(
            np.array([row["label"] for row in rows], np.int64), scores[:, 0] if self.is_binary else scores,
            [row["patient_id"] for row in rows], 0.5 if threshold is None else threshold,
        )  # fmt: skip

    def figures(self, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> dict[str, Any]:
        """Return the figures of a fold's test rows, and which of them are not defined."""
        fold = self.held_out(rows, threshold)
        if threshold is not None:
            return binary_metrics(fold.y_true, fold.scores, threshold)
        return multiclass_metrics(fold.y_true, fold.scores)
