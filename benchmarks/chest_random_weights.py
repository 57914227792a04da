"""What training is worth on findings of radiographs: an encoder beside the same network with random weights.

Usage: python benchmarks/chest_random_weights.py TABLE IMAGES RUN ENCODER SIZE N_SEEDS [WEIGHTS]

Five folds by patient; labels are the findings of ChestX-ray14. Prints the mean AUC over those with at least 20
positive images (`auc_macro_frequent`) for the paper's probe and for logistic regression: with the weights, with each
seed of random weights, and their difference with its paired interval over patients (2,000 draws). RUN keeps features.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from wsi_dino.encoders.loading import load_encoder
from wsi_dino.evaluation.label_difference import label_difference
from wsi_dino.evaluation.label_evaluation import EvaluationSpec, FoldScores
from wsi_dino.evaluation.label_folds import make_label_folds, rows_of_folds
from wsi_dino.evaluation.linear_probe import LinearProbeSpec, LogisticSpec
from wsi_dino.evaluation.metrics import auc
from wsi_dino.evaluation.probing import ProbeSpec, probe_folds
from wsi_dino.radiology.chest_features import embed_images
from wsi_dino.radiology.chest_image import ChestView
from wsi_dino.radiology.datasets.image_set import ImageSet
from wsi_dino.radiology.datasets.image_table import read_image_table
from wsi_dino.radiology.datasets.nih14 import LABELS
from wsi_dino.run_folder import RunFolder

_PROBES: dict[str, ProbeSpec] = {"linear probe": LinearProbeSpec(), "logistic regression": LogisticSpec()}


def main(table: Path, root: Path, run: Path, encoder: str, size: int, n_seeds: int, weights: Path | None) -> None:
    """Print a line a network and probe."""
    images = read_image_table(table, root, labels=LABELS)
    folds = rows_of_folds(make_label_folds(images.patient_ids, images.targets), images.patient_ids)
    features = {
        "trained" if seed is None else f"random {seed}": _features(images, run, encoder, size, seed, weights)
        for seed in (None, *range(n_seeds))
    }
    spec = EvaluationSpec(n_resamples=2000)
    for probe, model in _PROBES.items():
        scored = {
            name: probe_folds(each, images.targets.astype(np.float64), images.patient_ids, folds, model)[0]
            for name, each in features.items()
        }
        print(f"{encoder} at {size} px, {probe}: trained {_mean_auc(scored['trained'], spec):.3f}")
        for name, other in scored.items():
            if name != "trained":
                less = label_difference(scored["trained"], other, LABELS, spec)["auc_macro_frequent"]
                interval = f"{less['value']:+.3f} ({less['low']:+.3f} to {less['high']:+.3f})"
                print(f"  {name}: {_mean_auc(other, spec):.3f}; trained less random {interval}", flush=True)


def _features(
    images: ImageSet, run: Path, name: str, size: int, seed: int | None, weights: Path | None
) -> np.ndarray:  # fmt: skip
    encoder = load_encoder(
        name, input_px=size, random_weights=seed, weights=weights if seed is None else None, workers=1
    )
    view = ChestView(size_px=size, interpolation=encoder.spec.interpolation)
    return embed_images(RunFolder(run), images, encoder, view, workers=1).features


def _mean_auc(folds: list[FoldScores], spec: EvaluationSpec) -> float:
    n_positive = np.concatenate([fold.targets for fold in folds]).sum(0)
    by_label = [
        np.nanmean([auc(fold.targets[:, label], fold.scores[:, label]) for fold in folds])
        for label in np.flatnonzero(n_positive >= spec.min_positives)
    ]
    return float(np.mean(by_label))


if __name__ == "__main__":
    table, root, run, encoder, size, n_seeds, *rest = sys.argv[1:]
    main(Path(table), Path(root), Path(run), encoder, int(size), int(n_seeds), Path(rest[0]) if rest else None)
