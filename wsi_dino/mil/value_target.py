"""A number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic
from wsi_dino.evaluation.cohort import CohortRow
from wsi_dino.evaluation.regression import REGRESSION_STATISTICS
from wsi_dino.mil.objective import Objective, SquaredError
from wsi_dino.mil.target_kind import TargetKind


class ValueTarget(TargetKind):
    """A number, predicted in the unit of its column."""

    kind: Literal["regression"] = "regression"

    @property
    def score_column(self) -> str:
        """The predicted value."""
        return "predicted"

    @property
    def statistics(self) -> Mapping[str, Statistic]:
        """Errors and correlations."""
        return REGRESSION_STATISTICS

    def objective(self, taught: np.ndarray, *, balanced: bool) -> SquaredError:
        """Return the squared error of the standardised value."""
        return SquaredError.of(taught[:, 0])

    def know(self, row: CohortRow) -> dict[str, Any]:
        """Return ``value``."""
        return {"value": row.values[0]}

    def say(self, scores: np.ndarray, objective: Objective, threshold: float | None) -> dict[str, Any]:
        """Return ``predicted``."""
        return {"predicted": float(scores[0])}

    def held_out(self, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> FoldPredictions:
        """Return values and predictions; all patients are drawn alike."""
        return FoldPredictions(
            np.zeros(len(rows), np.int64), np.array([row["predicted"] for row in rows], np.float64),
            [row["patient_id"] for row in rows], values=np.array([[row["value"]] for row in rows], np.float64),
        )  # fmt: skip
