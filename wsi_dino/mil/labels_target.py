"""Several yes-or-no labels of one slide, predicted by one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Statistic
from wsi_dino.evaluation.cohort import CohortRow
from wsi_dino.evaluation.several_labels import label_statistics
from wsi_dino.evaluation.threshold import choose_threshold
from wsi_dino.mil.objective import BinaryPerLabel, Objective
from wsi_dino.mil.target_kind import SeenFold, TargetKind


class LabelsTarget(TargetKind):
    """Labels, each of which a slide has or not; one that is not known neither teaches nor counts.

    Attributes:
        names: their columns.
        words: of each label those for no and yes.
    """

    kind: Literal["labels"] = "labels"
    names: tuple[str, ...]
    words: tuple[tuple[str, str], ...]

    @property
    def score_column(self) -> str:
        """The score of the first label."""
        return f"score_{self.names[0]}"

    @property
    def statistics(self) -> Mapping[str, Statistic]:
        """The AUC of each label and their mean."""
        return label_statistics(self.names)

    def objective(self, taught: np.ndarray, *, balanced: bool) -> BinaryPerLabel:
        """Return the cross-entropy of each label."""
        return BinaryPerLabel.of(taught, balanced=balanced)

    def after_validation(self, seen: SeenFold) -> BinaryPerLabel:
        """Choose a cut for each label on the validation slides that have it; 0.5 where they lack a value."""
        rows = seen.rows(["val"])
        truth = np.array([row.values for row in rows])
        scores = np.stack([seen.scores[row.slide_id] for row in rows])
        cuts = []
        for label in range(len(self.names)):
            known = np.isfinite(truth[:, label])
            both = len(set(truth[known, label])) == 2
            policy = seen.policy if both else "fixed-0.5"
            cuts.append(choose_threshold(truth[known, label].astype(int), scores[known, label], policy).value)
        return _labels(seen.objective).model_copy(update={"thresholds": tuple(cuts)})

    def know(self, row: CohortRow) -> dict[str, Any]:
        """Return each label: 0, 1 or None."""
        return {
            name: None if math.isnan(value) else int(value) for name, value in zip(self.names, row.values, strict=True)
        }

    def say(self, scores: np.ndarray, objective: Objective, threshold: float | None) -> dict[str, Any]:
        """Return ``score_<label>`` and ``predicted_<label>``."""
        cuts = _labels(objective).thresholds
        each = {f"score_{name}": float(p) for name, p in zip(self.names, scores, strict=True)}
        parts = zip(self.names, self.words, scores, cuts, strict=True)
        return each | {f"predicted_{name}": words[int(p >= cut)] for name, words, p, cut in parts}

    def held_out(self, rows: Sequence[Mapping[str, Any]], threshold: float | None) -> FoldPredictions:
        """Return labels and scores ``(n, n_labels)``; all patients are drawn alike."""
        truth = [[math.nan if row[name] is None else row[name] for name in self.names] for row in rows]
        scores = [[row[f"score_{name}"] for name in self.names] for row in rows]
        return FoldPredictions(
            np.zeros(len(rows), np.int64), np.array(scores, np.float64), [row["patient_id"] for row in rows],
            values=np.array(truth, np.float64),
        )  # fmt: skip


def _labels(objective: Objective) -> BinaryPerLabel:
    if not isinstance(objective, BinaryPerLabel):
        raise TypeError(f"expected the objective of several labels, got {type(objective).__name__}")
    return objective
