"""How long probes and figures take at the size of ChestX-ray14: 112,120 images, 14 labels, the official split.

Usage: python benchmarks/chest_probe.py [EMBED_DIM] [RESAMPLES]

Features are drawn; labels depend on them weakly, at the prevalences of the data set. Prints seconds and memory.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from wsi_dino.evaluation.label_evaluation import EvaluationSpec, evaluate_labels
from wsi_dino.evaluation.label_folds import rows_of_folds, split_of_subsets
from wsi_dino.evaluation.linear_probe import LinearProbeSpec, LogisticSpec
from wsi_dino.evaluation.probing import probe_folds
from wsi_dino.radiology.datasets.nih14 import COMPLETE, LABELS, LIST_LENGTHS, TOTALS


def main(embed_dim: int, n_resamples: int) -> None:
    """Print a line a stage."""
    random = np.random.default_rng(0)
    features = random.standard_normal((COMPLETE, embed_dim), dtype=np.float32)
    logits = features @ random.standard_normal((embed_dim, len(LABELS)), dtype=np.float32) / embed_dim**0.5
    noisy = logits + random.standard_normal(logits.shape, dtype=np.float32)
    cuts = [np.quantile(noisy[:, i], 1 - TOTALS[name] / COMPLETE) for i, name in enumerate(LABELS)]
    targets = (noisy > np.array(cuts)).astype(np.float64)
    n_train = LIST_LENGTHS["train"]
    patients = [f"train-{i // 4}" if i < n_train else f"test-{i // 9}" for i in range(COMPLETE)]
    subsets = ["train" if i < n_train else "test" for i in range(COMPLETE)]
    begun = time.perf_counter()
    folds = rows_of_folds(split_of_subsets(patients, subsets, targets), patients)
    begun = _say("split", begun)
    scored = None
    for spec in (LinearProbeSpec(), LogisticSpec()):
        scored, _ = probe_folds(features, targets, patients, folds, spec)
        begun = _say(type(spec).__name__, begun)
    assert scored is not None
    found = evaluate_labels(scored, LABELS, EvaluationSpec(n_resamples=n_resamples))
    _say(f"all figures, {n_resamples} resamples", begun)
    print("auc_macro", {key: round(value, 4) for key, value in found["summary"]["auc_macro"].items()})


def _say(stage: str, begun: float) -> float:
    now = time.perf_counter()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{stage}: {now - begun:.1f} s, {peak_gb:.2f} GB so far", flush=True)
    return time.perf_counter()


if __name__ == "__main__":
    main(*(int(text) for text in (sys.argv[1:] + ["384", "1000"][len(sys.argv) - 1 :])))
