"""Bags in which a few instances tell the class, in memory."""

from __future__ import annotations

import numpy as np

from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.training import TrainingSpec

SMALL = TrainingSpec(hidden_dim=32, attention_dim=16, epochs=30, learning_rate=3e-3)
N_WITNESSES = 3


def make_bags(n_slides: int = 60, n_classes: int = 2, seed: int = 0, signal: float = 5.0) -> tuple[BagStore, Cohort]:
    """Return bags of 8 to 40 instances and their cohort; `N_WITNESSES` first instances show the class (0 has none)."""
    random = np.random.default_rng(seed)
    features, rows = {}, []
    for index in range(n_slides):
        label = index % n_classes
        bag = random.normal(size=(int(random.integers(8, 40)), 12)).astype(np.float32)
        if label:
            bag[:N_WITNESSES, label] += signal
        features[f"s{index}"] = bag
        rows.append(CohortRow(f"s{index}", f"p{index // 2 * 2 + label}", str(label), label))
    return BagStore.of_arrays(features, {"encoder": "toy"}), Cohort(tuple(rows), tuple("012"[:n_classes]), "y")
