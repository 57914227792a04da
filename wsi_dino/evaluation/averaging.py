"""Two ways of averaging precision and recall, and which of them a published row can be.

With two classes, precision and recall are those of the positive class, or the mean of both classes'
(macro). Tables often do not say which, and the two differ by 0.1 and more when classes are uneven.
Accuracy, precision and recall of the positive class together imply the share of positives:
``(1 - accuracy) / ((1 - recall) + recall (1 / precision - 1))``. A row whose implied share is not that
of its test set was not averaged so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval
from wsi_dino.evaluation.metrics import macro_statistic, positive_class_statistic

Convention = Literal["positive class", "macro over classes"]
Verdict = Literal["fits", "near", "does not fit"]
AVERAGED = ("precision", "recall", "f1")
CONVENTIONS: tuple[Convention, ...] = ("positive class", "macro over classes")
_NEAR = 0.01  # a mean over folds or seeds of different thresholds moves the row by about so much
_GRID = 201
_ZOOMS = 6


def average_both_ways(
    folds: Sequence[FoldPredictions], *, n_resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Return precision, recall and F1 by each convention that the number of classes allows.

    Returns:
        For ``positive_class`` (two classes only) and ``macro``: for each figure ``value`` (mean over
        folds), ``low`` and ``high`` (patient bootstrap) and ``std`` (between folds).
    """
    ways = {"macro": macro_statistic}
    if folds[0].scores.ndim == 1:
        ways = {"positive_class": positive_class_statistic, **ways}
    return {
        name: {kind: _summary(folds, make(kind), n_resamples, seed) for kind in AVERAGED} for name, make in ways.items()
    }


def _summary(folds: Sequence[FoldPredictions], statistic: Any, n_resamples: int, seed: int) -> dict[str, float]:
    interval = cv_interval(folds, statistic, n_resamples=n_resamples, seed=seed)
    each = [float(statistic(fold, np.ones((1, len(fold.y_true))))[0]) for fold in folds]
    std = float(np.std(each, ddof=1)) if len(each) > 1 else float("nan")
    return {"value": interval.value, "low": interval.low, "high": interval.high, "std": std}


# what a published row can be ------------------------------------------------------------------
@dataclass(frozen=True)
class PrintedRow:
    """Figures as printed; AUC is not needed.

    Attributes:
        half_unit: half of the last printed digit, the most that rounding moved each figure.
    """

    accuracy: float
    precision: float
    recall: float
    auc: float | None = None
    half_unit: float = 0.0005

    def __post_init__(self) -> None:
        for name in ("accuracy", "precision", "recall", "auc"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"Checking a row: {name} must lie between 0 and 1, got {value:g}.")


@dataclass(frozen=True)
class ConventionFit:
    """How well a row can be of one convention on a test set of known classes.

    Attributes:
        convention: the name.
        verdict: ``fits`` within rounding; ``near`` within 0.01 (as a mean over folds may be); or not.
        deviation: least possible largest distance of accuracy, precision and recall from the row, over
            all sensitivities and specificities.
        sensitivity: of the nearest classifier.
        specificity: of the nearest classifier.
        auc_bounds: least and greatest AUC of a score that has this point on its curve.
    """

    convention: Convention
    verdict: Verdict
    deviation: float
    sensitivity: float
    specificity: float
    auc_bounds: tuple[float, float]


@dataclass(frozen=True)
class RowCheck:
    """What a printed row can be.

    Attributes:
        prevalence: share of positives of the test set.
        implied_prevalence: that which the row implies if it is of the positive class, with the bounds
            that rounding leaves; None where the row implies none.
        fits: one a convention.
        conclusion: in words.
    """

    prevalence: float
    implied_prevalence: tuple[float, float, float] | None
    fits: tuple[ConventionFit, ...]
    conclusion: str


def implied_prevalence(row: PrintedRow) -> tuple[float, float, float] | None:
    """Return the share of positives that a row of the positive class implies: value, low, high.

    None when accuracy, precision and recall are all perfect, or precision or recall is 0.

    Examples:
        >>> [round(value, 3) for value in implied_prevalence(PrintedRow(0.713, 0.594, 0.776))]
        [0.38, 0.379, 0.382]
    """
    value = _implied(row.accuracy, row.precision, row.recall)
    moves = (-row.half_unit, 0.0, row.half_unit)
    around = [
        _implied(row.accuracy + a, row.precision + p, row.recall + r) for a in moves for p in moves for r in moves
    ]
    known = [share for share in around if share is not None]
    return None if value is None else (value, max(0.0, min(known)), min(1.0, max(known)))


def _implied(accuracy: float, precision: float, recall: float) -> float | None:
    if precision <= 0 or recall <= 0:
        return None
    wrong_a_positive = (1 - recall) + recall * (1 / precision - 1)
    return None if wrong_a_positive <= 0 else (1 - accuracy) / wrong_a_positive


_Predictor = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]


def _positive_class(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hits, false_alarms = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    accuracy = hits + (1 - prevalence) * specificity
    return accuracy, _share(hits, hits + false_alarms), sensitivity


def _macro(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    accuracy, precision, recall = _positive_class(sensitivity, specificity, prevalence)
    _, of_negatives, _ = _positive_class(specificity, sensitivity, 1 - prevalence)
    return accuracy, (precision + of_negatives) / 2, (recall + specificity) / 2


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


_PREDICTORS: dict[Convention, _Predictor] = {"positive class": _positive_class, "macro over classes": _macro}


def check_row(row: PrintedRow, n_positive: int, n_negative: int) -> RowCheck:
    """Tell which convention a printed row can be, given the classes of its test set.

    Raises:
        ConfigError: a class has no slide.

    Examples:
        >>> check_row(PrintedRow(0.951, 0.959, 0.938, 0.965), 49, 80).conclusion
        'macro over classes'
        >>> check_row(PrintedRow(0.713, 0.594, 0.776, 0.842), 49, 80).conclusion
        'positive class'
    """
    if n_positive < 1 or n_negative < 1:
        raise ConfigError(f"Checking a row: both classes need slides, got {n_positive} and {n_negative}.")
    prevalence = n_positive / (n_positive + n_negative)
    fits = tuple(_fit(row, convention, prevalence) for convention in CONVENTIONS)
    return RowCheck(prevalence, implied_prevalence(row), fits, _conclusion(fits))


def _conclusion(fits: Sequence[ConventionFit]) -> str:
    for verdict, text in (("fits", "{}"), ("near", "{}, as a mean over folds or seeds")):
        names = [fit.convention for fit in fits if fit.verdict == verdict]
        if names:
            return text.format(" or ".join(names))
    return "neither on these classes: another test set, or another average"


def _fit(row: PrintedRow, convention: Convention, prevalence: float) -> ConventionFit:
    """Search all classifiers by a grid that closes in on the nearest."""
    predict, printed = _PREDICTORS[convention], np.array([row.accuracy, row.precision, row.recall])
    middle, width = np.array([0.5, 0.5]), 0.5
    deviation = 1.0
    for _ in range(_ZOOMS):
        axes = [np.unique(np.clip(np.linspace(m - width, m + width, _GRID), 0, 1)) for m in middle]
        sensitivity, specificity = np.meshgrid(*axes, indexing="ij")
        predicted = np.stack(predict(sensitivity, specificity, prevalence), -1)
        distance = np.abs(predicted - printed).max(-1)
        best = np.unravel_index(distance.argmin(), distance.shape)
        middle, deviation = np.array([sensitivity[best], specificity[best]]), float(distance[best])
        width *= 0.1
    sensitivity_, specificity_ = (float(value) for value in middle)
    bounds = (sensitivity_ * specificity_, 1 - (1 - sensitivity_) * (1 - specificity_))
    return ConventionFit(convention, _verdict(row, deviation, bounds), deviation, sensitivity_, specificity_, bounds)


def _verdict(row: PrintedRow, deviation: float, bounds: tuple[float, float]) -> Verdict:
    if row.auc is not None and not bounds[0] - _NEAR <= row.auc <= bounds[1] + _NEAR:
        return "does not fit"
    if deviation <= row.half_unit + 1e-6:
        return "fits"
    return "near" if deviation <= _NEAR else "does not fit"
