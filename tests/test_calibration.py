"""Intervals of calibration against resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from wsi_dino.evaluation.calibration import calibration_interval, compute_reliability


def test_intervals_equal_those_of_resampling_by_hand() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(120)
    y = (rng.random(120) < score**2).astype(int)
    ours = calibration_interval(y, score, [str(i) for i in range(120)], n_resamples=4000)
    figures = []
    for _ in range(1000):
        rows = np.concatenate([rng.choice(np.flatnonzero(y == c), (y == c).sum()) for c in (0, 1)])
        error = compute_reliability(y[rows], score[rows]).expected_calibration_error
        figures.append((error, brier_score_loss(y[rows], score[rows])))
    for index, name in enumerate(("ece", "brier")):
        bounds = np.quantile([figure[index] for figure in figures], [0.025, 0.975])
        assert [ours[name]["low"], ours[name]["high"]] == pytest.approx(bounds, abs=0.012)


def test_copies_of_slides_add_no_certainty() -> None:
    rng = np.random.default_rng(1)
    score, patients = rng.random(40), [str(i) for i in range(40)]
    y = (rng.random(40) < score).astype(int)
    single = calibration_interval(y, score, patients, n_resamples=300)
    copied = calibration_interval(
        *(np.repeat(v, 5) for v in (y, score)), np.repeat(patients, 5).tolist(), n_resamples=300
    )
    for name in ("ece", "brier"):
        assert copied[name] == pytest.approx(single[name])
