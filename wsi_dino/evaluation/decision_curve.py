"""Decision curve: is acting on the score worth more than acting on all patients, or on none?"""

from __future__ import annotations

from typing import Any

import numpy as np

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def net_benefit(y_true: np.ndarray, score: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return true positives less false ones, these weighed by the odds of the threshold, a slide (Vickers 2006).

    Args:
        y_true: ``(n,)`` of 0 and 1.
        score: ``(n,)`` probabilities of the positive class.
        thresholds: ``(n_thresholds,)`` below 1: the probability from which one would act.

    Returns:
        float64 ``(n_thresholds,)``; acting on none gives 0.

    Examples:
        >>> net_benefit(np.array([0, 1]), np.array([0.6, 0.7]), np.array([0.5])).tolist()
        [0.0]
    """
    acts = np.asarray(score)[None] >= np.asarray(thresholds)[:, None]
    positive = np.asarray(y_true) == 1
    odds = thresholds / (1 - thresholds)
    return np.asarray((acts & positive).mean(1) - (acts & ~positive).mean(1) * odds)


def decision_section(y_true: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Return the curve of all held-out slides together as plain values, beside that of acting on all."""
    thresholds = np.array(THRESHOLDS)
    everyone = net_benefit(y_true, np.ones(len(y_true)), thresholds)
    return {
        "threshold": list(THRESHOLDS),
        "net_benefit": net_benefit(y_true, score, thresholds).tolist(),
        "net_benefit_of_all": everyone.tolist(),
    }
