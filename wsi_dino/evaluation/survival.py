"""Survival of held-out patients: Kaplan-Meier curves of risk groups, their log-rank test, calibration at a horizon."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval

_LEVEL = 0.95
_TICKS = 6
_FEWEST_IN_A_GROUP = 10
_MOST_GROUPS = 4


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lifelines' warnings about the next pandas from the user, who can do nothing about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def kaplan_meier(time: np.ndarray, event: np.ndarray) -> dict[str, Any]:
    """Return the Kaplan-Meier curve with its 95 % interval (on the scale log(-log)) as lists, from time 0.

    Examples:
        >>> curve = kaplan_meier(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 0, 1, 0]))
        >>> curve["time"], [round(s, 3) for s in curve["survival"]]
        ([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 0.75, 0.75, 0.375, 0.375])
    """
    from lifelines import KaplanMeierFitter

    with _quiet():
        fitted = KaplanMeierFitter(alpha=1 - _LEVEL).fit(time, event)
        bounds = fitted.confidence_interval_.to_numpy()
        curve = fitted.survival_function_
        median = float(fitted.median_survival_time_)
    return {
        "time": curve.index.to_numpy(float).tolist(),
        "survival": curve.to_numpy()[:, 0].tolist(),
        "low": np.nan_to_num(bounds[:, 0], nan=1.0).tolist(),
        "high": np.nan_to_num(bounds[:, 1], nan=1.0).tolist(),
        "median": median if np.isfinite(median) else None,
    }


def survival_at(curve: dict[str, Any], time: float) -> tuple[float, float, float]:
    """Return survival, low and high of a Kaplan-Meier curve at a time."""
    place = int(np.searchsorted(curve["time"], time, side="right")) - 1
    return curve["survival"][place], curve["low"][place], curve["high"][place]


def compare_groups(time: np.ndarray, event: np.ndarray, group: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the curve of each group and the p value of the log-rank test between them.

    Args:
        time: ``(n,)``.
        event: ``(n,)`` of 0 and 1.
        group: int ``(n,)``, index into `names`.
        names: of the groups; one without a patient is left out.

    Returns:
        ``log_rank_p`` (None where there are fewer than two groups or no event) and ``groups``: for each
        ``name, n, n_events, median``, ``curve`` and ``at_risk`` (``time``, ``n``).
    """
    from lifelines.statistics import multivariate_logrank_test

    present = [index for index in range(len(names)) if (group == index).any()]
    p = None
    if len(present) > 1 and event.any():
        with _quiet():
            p = float(multivariate_logrank_test(time, group, event).p_value)
    ticks = _nice_ticks(float(time.max()))
    return {
        "log_rank_p": p if p is not None and np.isfinite(p) else None,
        "groups": [_group(names[index], time[group == index], event[group == index], ticks) for index in present],
    }


def _group(name: str, time: np.ndarray, event: np.ndarray, ticks: Sequence[float]) -> dict[str, Any]:
    curve = kaplan_meier(time, event)
    at_risk = {"time": list(ticks), "n": [int((time >= tick).sum()) for tick in ticks]}
    sizes = {"name": name, "n": len(time), "n_events": int(event.sum()), "median": curve.pop("median")}
    return {**sizes, "curve": curve, "at_risk": at_risk}


def _nice_ticks(end: float) -> list[float]:
    raw = end / (_TICKS - 1)
    unit = 10 ** np.floor(np.log10(raw))
    step = unit * min((m for m in (1, 2, 2.5, 5, 10) if m * unit >= raw), default=10)
    return [round(float(tick), 12) for tick in np.arange(0, end + step / 1e6, step)]


def calibration_at(time: np.ndarray, event: np.ndarray, predicted: np.ndarray, horizon: float) -> list[dict[str, Any]]:
    """Compare predicted survival at a horizon with Kaplan-Meier's, in groups of equal size by prediction.

    Args:
        time: ``(n,)``.
        event: ``(n,)`` of 0 and 1.
        predicted: ``(n,)`` probabilities to be without event at `horizon`.
        horizon: in the unit of `time`.

    Returns:
        For each group, the lowest survival first: ``predicted`` (mean), ``observed, low, high`` (None where nobody of
        the group was watched so long and the last one seen had not had the event), ``n, n_events``.
    """
    n_groups = int(np.clip(len(time) // _FEWEST_IN_A_GROUP, 1, _MOST_GROUPS))
    rows = []
    for members in np.array_split(np.argsort(predicted, kind="stable"), n_groups):
        curve = kaplan_meier(time[members], event[members])
        is_known = time[members].max() >= horizon or curve["survival"][-1] == 0
        observed, low, high = survival_at(curve, horizon) if is_known else (None, None, None)
        happened = int(event[members][time[members] <= horizon].sum())
        mean = float(predicted[members].mean())
        rows.append(
            {"predicted": mean, "observed": observed, "low": low, "high": high, "n": len(members), "n_events": happened}
        )  # fmt: skip
    return rows


def brier_at(
    time: np.ndarray, event: np.ndarray, predicted: np.ndarray, patient_id: Sequence[str], horizon: float, *,
    n_resamples: int = 2000, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Return the Brier score of survival at a horizon, weighted for censoring (Graf et al. 1999), with its interval.

    Patients censored before the horizon have weight 0; the others that of their chance to be uncensored.

    Returns:
        ``value, low, high`` and ``of_kaplan_meier``: the score of one curve for everybody.
    """
    weights = censoring_weights(time, event, horizon)
    is_free = time > horizon
    known = FoldPredictions(np.zeros(len(time), int), (is_free - predicted) ** 2 * weights, patient_id)
    value = cv_interval([known], lambda fold, w: w @ fold.scores / w.sum(1), n_resamples=n_resamples, seed=seed)
    marginal = survival_at(kaplan_meier(time, event), horizon)[0]
    return {
        "value": value.value, "low": value.low, "high": value.high,
        "of_kaplan_meier": float(np.mean((is_free - marginal) ** 2 * weights)),
    }  # fmt: skip


def censoring_weights(time: np.ndarray, event: np.ndarray, horizon: float) -> np.ndarray:
    """Return ``(n,)``: one over the chance to be uncensored just before the event, or at the horizon without it.

    Examples:
        >>> censoring_weights(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 0, 1, 1]), 3.5).round(3).tolist()
        [1.0, 0.0, 1.5, 1.5]
    """
    censored = kaplan_meier(time, 1 - np.asarray(event))
    times, free = np.array(censored["time"]), np.array(censored["survival"])
    before = free[np.searchsorted(times, time, side="left") - 1]
    chance = np.where(time > horizon, survival_at(censored, horizon)[0], before)
    counts = (time > horizon) | (np.asarray(event) == 1)
    return np.divide(counts, chance, out=np.zeros(len(time)), where=counts & (chance > 0))
