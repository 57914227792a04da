"""Where to cut the score of each label: by a named policy, on validation unless asked to be optimistic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import numpy as np

from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.evaluation.threshold import Criterion, best_cut

LabelPolicy = Literal[
    "fixed", "youden-on-validation", "corner-on-validation", "f1-on-validation",
    "youden-on-test", "corner-on-test", "f1-on-test",
]  # fmt: skip
POLICIES: tuple[LabelPolicy, ...] = get_args(LabelPolicy)
HONEST: tuple[LabelPolicy, ...] = tuple(policy for policy in POLICIES if not policy.endswith("-on-test"))
OPTIMISTIC: tuple[LabelPolicy, ...] = tuple(policy for policy in POLICIES if policy.endswith("-on-test"))


@dataclass(frozen=True)
class LabelThresholds:
    """A cut for each label: a score at or above it is a yes.

    Attributes:
        values: float64 ``(n_labels,)``.
        policy: how they were chosen.
        fallbacks: labels that the policy could not decide, and why; they are cut at the fixed value.
    """

    values: np.ndarray
    policy: LabelPolicy
    fallbacks: dict[str, str] = field(default_factory=dict)

    @property
    def is_optimistic(self) -> bool:
        """Whether the test labels themselves chose the cuts: such figures are not those of a held-out set."""
        return self.policy in OPTIMISTIC


def choose_label_thresholds(
    targets: np.ndarray,
    scores: np.ndarray,
    label_names: Sequence[str],
    policy: LabelPolicy = "youden-on-validation",
    *,
    fixed: float = 0.5,
) -> LabelThresholds:
    """Choose one cut a label.

    Args:
        targets: float ``(n, n_labels)`` of 0, 1 and NaN (unknown), of the images that decide: those of validation,
            or of the test for the policies ``...-on-test``.
        scores: float ``(n, n_labels)`` probabilities.
        label_names: ``(n_labels,)``.
        policy: one of `POLICIES`.
        fixed: the cut of ``fixed``, and of labels that have no positive or no negative image here.

    Raises:
        ConfigError: no such policy, or `fixed` is no probability.

    Examples:
        >>> targets, scores = np.array([[0.0], [1.0]]), np.array([[0.1], [0.3]])
        >>> float(choose_label_thresholds(targets, scores, ["Mass"]).values[0])
        0.2
        >>> choose_label_thresholds(targets * 0, scores, ["Mass"]).fallbacks
        {'Mass': 'no positive image'}
    """
    if policy not in POLICIES:
        near = nearest_name(policy, POLICIES)
        raise ConfigError(f"Choosing thresholds: no policy {policy!r}.{near} Known: {', '.join(POLICIES)}.")
    if not 0 <= fixed <= 1:
        raise ConfigError(f"Choosing thresholds: a fixed threshold lies between 0 and 1, got {fixed:g}.")
    values, fallbacks = np.full(len(label_names), float(fixed)), {}
    if policy == "fixed":
        return LabelThresholds(values, policy)
    criterion = cast(Criterion, policy.split("-")[0])
    for label, name in enumerate(label_names):
        known = ~np.isnan(targets[:, label])
        target = targets[known, label]
        missing = [kind for kind, value in (("positive", 1), ("negative", 0)) if not (target == value).any()]
        if missing:
            fallbacks[name] = f"no {' and no '.join(missing)} image"
        else:
            values[label] = best_cut(target, scores[known, label], criterion)
    return LabelThresholds(values, policy, fallbacks)
