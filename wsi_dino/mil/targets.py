"""Every kind of target, and which one a task is of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.mil.class_target import ClassTarget
from wsi_dino.mil.labels_target import LabelsTarget
from wsi_dino.mil.survival_target import SurvivalTarget
from wsi_dino.mil.tasks import Task
from wsi_dino.mil.value_target import ValueTarget

AnyTarget = Annotated[ClassTarget | LabelsTarget | ValueTarget | SurvivalTarget, Field(discriminator="kind")]


def target_of(cohort: Cohort, task: Task | None = None) -> AnyTarget:
    """Return the kind of target of a cohort, with the settings of the task.

    Args:
        cohort: the slides that take part.
        task: what is predicted; only survival needs it, for head and horizon.
    """
    if cohort.kind == "classes":
        return ClassTarget(names=cohort.class_names)
    if cohort.kind == "labels":
        return LabelsTarget(names=cohort.columns, words=cohort.value_names)
    if cohort.kind == "regression":
        return ValueTarget()
    if task is None or task.horizon is None:
        raise ValueError("survival needs its task, with a horizon")
    return SurvivalTarget(head=task.survival_head, intervals=task.intervals, horizon=task.horizon)
