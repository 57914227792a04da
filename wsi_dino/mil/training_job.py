"""One model to be trained: on what, towards what, and by which recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsi_dino.mil.objective import Objective
from wsi_dino.mil.training import TrainingSpec


@dataclass(frozen=True)
class TrainingJob:
    """What `train_fold` is asked for one model.

    Attributes:
        spec: architecture and recipe; the jobs of one call differ in the seed alone.
        truth: of each slide, as the objective wants it.
        train_ids: slides to learn from, each with at least one tile.
        val_ids: slides to stop by, likewise.
        objective: the loss; all jobs have as many outputs.
    """

    spec: TrainingSpec
    truth: Mapping[str, Sequence[float]]
    train_ids: tuple[str, ...]
    val_ids: tuple[str, ...]
    objective: Objective
