"""How often 95 % intervals of a cross-validated AUC hold the truth, and how often the paired tests cry wolf.

Scores are drawn from two normals whose AUC is known, dealt into five folds; no model is trained. Usage:

    python benchmarks/interval_coverage.py [REPEATS]
"""

from __future__ import annotations

import sys
from statistics import NormalDist

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, cv_interval
from wsi_dino.evaluation.delong import auc_influence, delong_interval, delong_test
from wsi_dino.evaluation.metrics import STATISTICS
from wsi_dino.evaluation.permutation import permutation_tests, swap_weights

_SHIFTS = {0.75: 2**0.5 * NormalDist().inv_cdf(0.75), 0.95: 2**0.5 * NormalDist().inv_cdf(0.95)}
_N_FOLDS = 5


def _draw(random: np.random.Generator, n: int, shift: float) -> tuple[list[FoldPredictions], list[FoldPredictions]]:
    """Two equally good, correlated encoders; a third of the patients is positive."""
    first, second = [], []
    for fold in range(_N_FOLDS):
        y = (np.arange(n // _N_FOLDS) % 3 == 0).astype(int)
        common = random.normal(size=len(y)) * 0.5**0.5
        patients = [f"{fold}-{i}" for i in range(len(y))]
        for side in (first, second):
            side.append(FoldPredictions(y, shift * y + common + random.normal(size=len(y)) * 0.5**0.5, patients))
    return first, second


def _row(n: int, auc: float, repeats: int) -> str:
    random, held = np.random.default_rng(n), np.zeros(5)
    for _ in range(repeats):
        first, second = _draw(random, n, _SHIFTS[auc])
        boot = cv_interval(first, STATISTICS["auc"], n_resamples=500, seed=int(random.integers(2**31)))
        influence = auc_influence(first), auc_influence(second)
        logit, plain = (delong_interval(influence[0], scale=scale) for scale in ("logit", "plain"))
        permuted = permutation_tests(swap_weights(first, second)[:, None], 999, int(random.integers(2**31)))[0]
        held += [each.low <= auc <= each.high for each in (boot, logit, plain)] + [
            delong_test(*influence).p < 0.05,
            permuted.p < 0.05,
        ]
    return "  ".join([f"{n:9d}  {auc:4.2f}", *(f"{share:9.3f}" for share in held / repeats)])


def main() -> None:
    """Print one row for each size and AUC."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(" patients   AUC  bootstrap  DeLong, l  DeLong, p  p DeLong   p permut.")
    for n in (40, 100, 300, 1000):
        for auc in _SHIFTS:
            print(_row(n, auc, repeats), flush=True)


if __name__ == "__main__":
    main()
