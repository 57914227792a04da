"""Where to cut a score: decided on the validation subset, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from wsi_dino.errors import ConfigError, nearest_name

Criterion = Literal["youden", "f1", "corner"]
ThresholdPolicy = Literal["youden-on-validation", "fixed-0.5", "f1-on-validation"]
_Gain = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]


@dataclass(frozen=True)
class Threshold:
    """A cut and how it was chosen: a score at or above `value` counts as positive."""

    value: float
    policy: str


def choose_threshold(
    y_val: np.ndarray, score_val: np.ndarray, policy: ThresholdPolicy = "youden-on-validation"
) -> Threshold:
    """Choose the cut by `policy` on validation scores.

    Every cut between two neighbouring scores gives the same predictions; of all that are best, the
    gap nearest to 0.5 is taken, and in it 0.5 itself or else the middle. So a small, separable
    validation set gives 0.5 wherever it may.

    Args:
        y_val: ``(n,)`` of 0 and 1, both present unless the policy is ``fixed-0.5``.
        score_val: ``(n,)`` probabilities of the positive class.
        policy: ``youden-on-validation`` maximises recall + specificity, ``f1-on-validation`` F1.

    Raises:
        ConfigError: no such policy.

    Examples:
        >>> choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])).value
        0.25
        >>> choose_threshold(np.array([0, 1]), np.array([0.1, 0.9])).value
        0.5
    """
    if policy not in get_args(ThresholdPolicy):
        known = get_args(ThresholdPolicy)
        raise ConfigError(f"Choosing a threshold: no policy {policy!r}.{nearest_name(policy, known)} Known: {known}.")
    if policy == "fixed-0.5":
        return Threshold(0.5, policy)
    return Threshold(best_cut(y_val, score_val, "youden" if policy.startswith("youden") else "f1"), policy)


def _youden(tp: np.ndarray, fp: np.ndarray, n_positive: int, n_negative: int) -> np.ndarray:
    return tp / max(n_positive, 1) - fp / max(n_negative, 1)


def _f1(tp: np.ndarray, fp: np.ndarray, n_positive: int, n_negative: int) -> np.ndarray:
    return 2 * tp / np.maximum(tp + fp + n_positive, 1)


def _corner(tp: np.ndarray, fp: np.ndarray, n_positive: int, n_negative: int) -> np.ndarray:
    return -np.hypot(1 - tp / max(n_positive, 1), fp / max(n_negative, 1))


_GAINS: dict[str, _Gain] = {"youden": _youden, "f1": _f1, "corner": _corner}


def best_cut(y_val: np.ndarray, score_val: np.ndarray, criterion: Criterion) -> float:
    """Return the cut that is best by `criterion` and nearest to 0.5, as `choose_threshold` describes it.

    Args:
        y_val: ``(n,)`` of 0 and 1.
        score_val: ``(n,)`` probabilities of the positive class.
        criterion: ``youden`` maximises sensitivity + specificity, ``f1`` F1, ``corner`` comes nearest to the
            corner of the ROC plane where both are 1 (another point than Youden's).

    Examples:
        >>> best_cut(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4]), "corner")
        0.25
    """
    y_val, score_val, gain = np.asarray(y_val), np.asarray(score_val, np.float64), _GAINS[criterion]
    values, inverse = np.unique(score_val, return_inverse=True)
    positives = np.bincount(inverse[y_val == 1], minlength=len(values))
    negatives = np.bincount(inverse[y_val != 1], minlength=len(values))
    # cut i calls values[i:] positive; cut len(values) calls none
    tp = np.r_[np.cumsum(positives[::-1])[::-1], 0]
    fp = np.r_[np.cumsum(negatives[::-1])[::-1], 0]
    gains = gain(tp, fp, int(positives.sum()), int(negatives.sum()))
    low, high = np.r_[0.0, values], np.r_[values, 1.0]
    cuts = np.where((low < 0.5) & (high >= 0.5), 0.5, (low + high) / 2)
    best = np.flatnonzero(gains >= gains.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])
