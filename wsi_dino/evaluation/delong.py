"""The variance of an AUC by its structural components, its interval, and the paired test of two AUCs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions

Scale = Literal["logit", "plain"]
NO_VARIANCE = "DeLong's variance is 0 (no two slides of different classes are ranked differently by other slides)"


@dataclass(frozen=True)
class AucInfluence:
    """A mean AUC over folds and what each patient adds to its error.

    Attributes:
        value: mean over folds; with more than two classes also over classes, one against the rest.
        patients: text ``(n_patients,)``, sorted.
        influence: float64 ``(n_patients,)``; the sum of its squares is the variance, and the sum of
            products with another's on the same slides the covariance. NaN where that is not defined.
        is_clustered: whether a patient has several slides in a fold, or is tested in several folds.
        note: why there is no variance, or an empty text.
    """

    value: float
    patients: np.ndarray
    influence: np.ndarray
    is_clustered: bool
    note: str = ""

    @property
    def variance(self) -> float:
        """Of `value`, over other patients tested by the same models."""
        return float(self.influence @ self.influence)


@dataclass(frozen=True)
class DelongInterval:
    """An AUC with its standard error and interval; NaN bounds, and a note, where there is none."""

    value: float
    low: float
    high: float
    standard_error: float
    scale: str
    note: str = ""


@dataclass(frozen=True)
class DelongTest:
    """The difference of two AUCs on the same slides; NaN `p`, and a note, where the test says nothing."""

    difference: float
    low: float
    high: float
    standard_error: float
    z: float
    p: float
    note: str = ""


def structural_components(is_positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each positive the share of negatives below it, for each negative that of positives above it.

    Ties count half. Both means are the AUC. Sorting makes it O(n log n): Sun and Xu 2014 for the
    components of DeLong, DeLong and Clarke-Pearson 1988.

    Args:
        is_positive: bool ``(n,)`` with both values present.
        score: finite float ``(n,)``.

    Examples:
        >>> above, below = structural_components(np.array([True, False, True]), np.array([0.9, 0.5, 0.5]))
        >>> above.tolist(), below.tolist()
        ([1.0, 0.5], [0.75])
    """
    positives, negatives = score[is_positive], score[~is_positive]
    return _share_below(positives, np.sort(negatives)), 1 - _share_below(negatives, np.sort(positives))


def _share_below(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Share of `ascending` below each value, equal ones half."""
    less, less_or_equal = (np.searchsorted(ascending, values, side) for side in ("left", "right"))
    return np.asarray((less + less_or_equal) / (2 * len(ascending)))


def auc_influence(folds: Sequence[FoldPredictions]) -> AucInfluence:
    """Return the mean AUC over folds with the influence of each patient on it.

    With one slide a patient the variance is DeLong's. Slides of one patient, or of one patient in
    several folds, are summed before squaring (Obuchowski 1997), so that they count as one. Where a
    patient has slides of both classes its mixed term is scaled by the root of the factors of both
    classes, not by I/(I-1), which keeps every variance at or above 0.

    Raises:
        ValueError: a score is not finite.
    """
    patients, patient_of = np.unique(
        np.concatenate([np.asarray(fold.patient_id, dtype=str) for fold in folds]), return_inverse=True
    )
    influence, values, notes, start = np.zeros(len(patients)), [], [], 0
    for number, fold in enumerate(folds):
        members = patient_of[start : start + len(fold.y_true)]
        start += len(fold.y_true)
        value, part, why = _fold_influence(fold, members, len(patients))
        notes += [f"fold {number}: {why}"] if why else []
        influence += part / len(folds)
        values.append(value)
    return AucInfluence(float(np.mean(values)), patients, influence, len(patients) < start, "; ".join(notes))


def _fold_influence(fold: FoldPredictions, patient_of: np.ndarray, n_patients: int) -> tuple[float, np.ndarray, str]:
    if not np.isfinite(fold.scores).all():
        n_wrong = int((~np.isfinite(fold.scores)).sum())
        raise ValueError(f"expected finite scores, got {n_wrong} of {fold.scores.size} that are not")
    if fold.scores.ndim == 1:
        return _one_against_rest(fold.y_true == 1, fold.scores, patient_of, n_patients)
    classes = range(fold.scores.shape[1])
    each = [_one_against_rest(fold.y_true == c, fold.scores[:, c], patient_of, n_patients) for c in classes]
    values, parts, notes = zip(*each, strict=True)
    return float(np.mean(values)), np.mean(parts, axis=0), next((note for note in notes if note), "")


def _one_against_rest(
    is_positive: np.ndarray, score: np.ndarray, patient_of: np.ndarray, n_patients: int
) -> tuple[float, np.ndarray, str]:
    unknown = np.full(n_patients, np.nan)
    if is_positive.all() or not is_positive.any():
        return math.nan, unknown, "only one class is tested, so there is no AUC"
    above, below = structural_components(is_positive, score)
    value = float(above.mean())
    parts = np.zeros(n_patients)
    for members, components in ((patient_of[is_positive], above), (patient_of[~is_positive], below)):
        n = len(np.unique(members))
        if n < 2:
            return value, unknown, "a class has one patient, so DeLong's variance is not defined"
        deviation = np.bincount(members, components - value, n_patients) / len(components)
        parts += math.sqrt(n / (n - 1)) * deviation
    return value, parts, ""


def delong_interval(auc: AucInfluence, level: float = 0.95, scale: Scale = "logit") -> DelongInterval:
    """Return the interval of an AUC from DeLong's variance.

    Args:
        auc: of `auc_influence`.
        level: coverage.
        scale: ``logit`` forms it on log(AUC / (1 - AUC)), which stays within 0..1 and covers better
            near them; ``plain`` is AUC +- z SE, cut at 0 and 1.

    Examples:
        >>> fold = FoldPredictions(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]), list("abcd"))
        >>> interval = delong_interval(auc_influence([fold]))
        >>> interval.value, round(interval.standard_error, 4), round(interval.low, 3), round(interval.high, 3)
        (0.75, 0.3536, 0.069, 0.992)
    """
    error, value = math.sqrt(auc.variance) if not math.isnan(auc.variance) else math.nan, auc.value
    if math.isnan(error) or error == 0:
        note = auc.note or f"{NO_VARIANCE}: it gives no interval, which does not mean certainty"
        return DelongInterval(value, math.nan, math.nan, error, scale, note)
    z = NormalDist().inv_cdf((1 + level) / 2)
    if scale == "plain":
        return DelongInterval(value, max(0.0, value - z * error), min(1.0, value + z * error), error, scale)
    middle, width = math.log(value / (1 - value)), z * error / (value * (1 - value))
    return DelongInterval(value, _inverse_logit(middle - width), _inverse_logit(middle + width), error, scale)


def _inverse_logit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def delong_test(first: AucInfluence, second: AucInfluence, level: float = 0.95) -> DelongTest:
    """Test whether two AUCs on the same slides differ, two-sided, with the interval of their difference.

    Raises:
        ValueError: they are not of the same patients.
    """
    if not np.array_equal(first.patients, second.patients):
        raise ValueError("expected two AUCs of the same patients")
    difference = first.value - second.value
    between = first.influence - second.influence
    error = float(np.sqrt(between @ between))
    if math.isnan(error):
        return _no_test(difference, error, first.note or second.note)
    if error <= 1e-12:  # rounding of equal components
        if abs(difference) <= 1e-12:
            return DelongTest(difference, difference, difference, 0.0, 0.0, 1.0, "both rank all slides alike")
        return _no_test(difference, 0.0, "DeLong's variance of the difference is 0: it gives no test")
    z, width = difference / error, NormalDist().inv_cdf((1 + level) / 2) * error
    p = math.erfc(abs(z) / math.sqrt(2))
    return DelongTest(difference, difference - width, difference + width, error, z, p)


def _no_test(difference: float, error: float, note: str) -> DelongTest:
    return DelongTest(difference, math.nan, math.nan, error, math.nan, math.nan, note)
