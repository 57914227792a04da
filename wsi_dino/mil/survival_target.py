"""Time to an event that was not seen in everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic
from wsi_dino.evaluation.cohort import CohortRow
from wsi_dino.evaluation.concordance import SURVIVAL_STATISTICS
from wsi_dino.evaluation.threshold import Threshold
from wsi_dino.mil.objective import CoxPartialLikelihood, DiscreteTimeHazard, Objective
from wsi_dino.mil.target_kind import SeenFold, TargetKind

CUT_POLICY = "median-risk-of-training"
LOW, HIGH = "low risk", "high risk"


class SurvivalTarget(TargetKind):
    """Survival; figures are of patients, whose risk is the mean over their slides.

    Attributes:
        head: hazards of intervals of time, or Cox's partial likelihood.
        intervals: of the discrete head.
        horizon: time for which survival is reported.
    """

    looks_back: ClassVar[bool] = True
    kind: Literal["survival"] = "survival"
    head: Literal["discrete", "cox"] = "discrete"
    intervals: int = Field(4, ge=1)
    horizon: float

    @property
    def score_column(self) -> str:
        """The risk."""
        return "risk"

    @property
    def statistics(self) -> Mapping[str, Statistic]:
        """Concordance."""
        return SURVIVAL_STATISTICS

    def objective(self, taught: np.ndarray, *, balanced: bool) -> Objective:
        """Return the likelihood of the head."""
        if self.head == "cox":
            return CoxPartialLikelihood(horizon=self.horizon)
        return DiscreteTimeHazard.of(taught, n_intervals=self.intervals, horizon=self.horizon)

    def threshold(self, seen: SeenFold) -> Threshold:
        """Return the median risk of the fold's training and validation patients."""
        risks: dict[str, list[float]] = {}
        for row in seen.rows(["train", "val"]):
            risks.setdefault(row.patient_id, []).append(float(seen.scores[row.slide_id][0]))
        return Threshold(float(np.median([np.mean(each) for each in risks.values()])), CUT_POLICY)

    def know(self, row: CohortRow) -> dict[str, Any]:
        """Return ``time`` and ``event``."""
        return {"time": row.values[0], "event": int(row.values[1])}

    def say(self, scores: np.ndarray, objective: Objective, threshold: float | None) -> dict[str, Any]:
        """Return ``risk``, ``survival`` (at the horizon) and ``group``."""
        group = {} if threshold is None else {"group": HIGH if scores[0] > threshold else LOW}
        return {"risk": float(scores[0]), "survival": float(scores[1]), **group}

    def held_out(self, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> FoldPredictions:
        """Return a row a patient: outcome, and mean risk of the slides."""
        patients = self.patients(rows)
        return FoldPredictions(
            np.array([row["event"] for row in patients], np.int64), np.array([row["risk"] for row in patients]),
            [row["patient_id"] for row in patients], 0.0 if threshold is None else threshold,
            np.array([(row["time"], row["event"]) for row in patients], np.float64),
        )  # fmt: skip

    def patients(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return one row a patient: ``patient_id, time, event, risk, survival``, means over the slides."""
        slides: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            slides.setdefault(str(row["patient_id"]), []).append(row)
        return [
            {
                "patient_id": patient, "time": float(same[0]["time"]), "event": int(same[0]["event"]),
                **{name: float(np.mean([row[name] for row in same])) for name in ("risk", "survival")},
            }
            for patient, same in slides.items()
        ]  # fmt: skip
