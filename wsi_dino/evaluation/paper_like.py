"""Which convention could have given the paper's figures for NIH ChestX-ray14: a lead, never a result.

The paper (arXiv 2509.06467v1, Table 2) prints for 14 labels an AUC of 0.78, and "ACC" 0.48, "Precision" 0.54 and
"Recall" 0.57, and does not say how they are averaged. An accuracy of 0.48 is no share of agreeing cells (predicting
"no" everywhere gives 0.92). Here the same predictions are judged by many conventions and cuts, and the nearest to
the printed three are listed. What comes out nearest was looked for: it shows what is possible, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.label_thresholds import HONEST, choose_label_thresholds
from wsi_dino.evaluation.multilabel import LabelPredictions, conventions, label_aucs

# accuracy, precision, recall as Table 2 prints them
PRINTED = {
    "BiomedCLIP": (0.4820, 0.5454, 0.5643),
    "DINOv3-S": (0.4838, 0.5419, 0.5791),
    "DINOv3-B": (0.4823, 0.5446, 0.5753),
    "DINOv3-L": (0.4674, 0.5355, 0.5779),
}
PRINTED_AUC = {"BiomedCLIP": 0.7771, "DINOv3-S": 0.7788, "DINOv3-B": 0.7833, "DINOv3-L": 0.7865}
NO_FINDING = "No Finding"
NOTE = (
    "Looked for after the fact among {n} combinations: the nearest is a lead, not a finding. The paper does not say "
    "how its figures are averaged, and at another AUC another row may be nearest."
)
_TRIPLES = {
    "example-based": ("accuracy_example", "precision_example", "recall_example"),
    "subset accuracy, macro": ("accuracy_subset", "precision_macro", "recall_macro"),
    "subset accuracy, example-based": ("accuracy_subset", "precision_example", "recall_example"),
    "Hamming, macro": ("accuracy_hamming", "precision_macro", "recall_macro"),
    "Hamming, micro": ("accuracy_hamming", "precision_micro", "recall_micro"),
    "Hamming, weighted": ("accuracy_hamming", "precision_weighted", "recall_weighted"),
    "Hamming, both classes": ("accuracy_hamming", "precision_two_class_macro", "recall_two_class_macro"),
    "top 1, macro": ("accuracy_top1", "precision_macro", "recall_macro"),
}
_CUTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


def paper_like(
    folds: Sequence[FoldScores], label_names: Sequence[str], *, no_finding: str | None = None, shown: int = 12
) -> dict[str, Any]:
    """Judge predictions by every combination of labels, convention, 0/0 and cut, nearest to the paper's first.

    Args:
        folds: predictions of the labels.
        label_names: ``(n_labels,)``.
        no_finding: the label that says there is none, where it was learnt; without, it is scored as the product of
            ``1 - p`` over the labels.
        shown: rows to return.

    Returns:
        ``rows`` (each with ``labels``, ``convention``, ``zero_division``, ``threshold``, ``accuracy``,
        ``precision``, ``recall``, ``nearest`` (of the printed rows) and ``distance``, the largest of the three),
        ``auc_macro``, ``note`` and ``printed``.
    """
    rows = [row for fold_set, name in _label_sets(folds, label_names, no_finding) for row in _rows(fold_set, name)]
    n_tried, rows = len(rows), sorted(_merged(rows), key=lambda row: row["distance"])
    ones = [np.ones((1, len(fold.targets))) for fold in folds]
    aucs = [
        float(np.nanmean(label_aucs(_cut(fold, np.full(fold.scores.shape[1], 0.5)), one)[0]))
        for fold, one in zip(folds, ones, strict=True)
        if (fold.targets == 1).any()
    ]
    printed = [
        {"encoder": name, "auc": PRINTED_AUC[name], "accuracy": a, "precision": p, "recall": r}
        for name, (a, p, r) in PRINTED.items()
    ]
    return {
        "note": NOTE.format(n=n_tried),
        "printed": printed,
        "auc_macro": float(np.mean(aucs)) if aucs else None,
        "rows": rows[:shown],
    }


def _merged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one row of two that differ in what 0/0 counts as alone, and in no figure."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(value for name, value in row.items() if name != "zero_division")
        kept[key] = row | ({"zero_division": "0 or 1"} if key in kept else {})
    return list(kept.values())


_Sets = Iterator[tuple[Sequence[FoldScores], str]]


def _label_sets(folds: Sequence[FoldScores], label_names: Sequence[str], no_finding: str | None) -> _Sets:
    findings = [i for i, name in enumerate(label_names) if name != no_finding]
    alone = [_with(fold, *(values[:, findings] for values in _values(fold))) for fold in folds]
    yield alone, f"{len(findings)} findings"
    learnt = no_finding is not None and no_finding in label_names
    both = list(folds) if learnt else [_with(fold, *_extended(fold)) for fold in alone]
    yield both, f"{len(findings)} findings and {NO_FINDING} ({'learnt' if learnt else 'product of 1 - p'})"


def _values(fold: FoldScores) -> tuple[np.ndarray, ...]:
    return fold.targets, fold.scores, fold.val_targets, fold.val_scores


def _with(fold: FoldScores, *values: np.ndarray) -> FoldScores:
    targets, scores, val_targets, val_scores = values
    return FoldScores(targets, scores, fold.patient_id, val_targets, val_scores, fold.rows)


def _extended(fold: FoldScores) -> tuple[np.ndarray, ...]:
    """Add the label that says there is no finding, and its score."""

    def target(values: np.ndarray) -> np.ndarray:
        none = np.where(np.isnan(values).any(1), np.nan, (np.nan_to_num(values) == 0).all(1).astype(float))
        return np.column_stack([values, np.where((values == 1).any(1), 0.0, none)])

    def score(values: np.ndarray) -> np.ndarray:
        return np.column_stack([values, np.prod(1 - values, axis=1)])

    return target(fold.targets), score(fold.scores), target(fold.val_targets), score(fold.val_scores)


def _rows(folds: Sequence[FoldScores], labels: str) -> Iterator[dict[str, Any]]:
    for text, cut in _cuts(folds):
        for zero_division in (0, 1):
            figures = [conventions(fold, zero_division=zero_division) for fold in cut]
            for convention, names in _TRIPLES.items():
                triple = tuple(float(np.mean([each[name][0] for each in figures])) for name in names)
                yield {
                    "labels": labels, "convention": convention, "zero_division": zero_division, "threshold": text,
                    **dict(zip(("accuracy", "precision", "recall"), triple, strict=True)), **_nearest(triple),
                }  # fmt: skip


def _cuts(folds: Sequence[FoldScores]) -> Iterator[tuple[str, list[LabelPredictions]]]:
    n_labels = folds[0].scores.shape[1]
    for cut in _CUTS:
        yield f"{cut:g} for all labels", [_cut(fold, np.full(n_labels, cut)) for fold in folds]
    names = [str(i) for i in range(n_labels)]
    for policy in HONEST[1:]:
        chosen = [choose_label_thresholds(fold.val_targets, fold.val_scores, names, policy) for fold in folds]
        yield policy, [_cut(fold, t.values) for fold, t in zip(folds, chosen, strict=True)]


def _cut(fold: FoldScores, thresholds: np.ndarray) -> LabelPredictions:
    return LabelPredictions(fold.targets, fold.scores, fold.patient_id, fold.scores >= thresholds)


def _nearest(triple: tuple[float, ...]) -> dict[str, Any]:
    distance = {name: max(abs(a - b) for a, b in zip(triple, row, strict=True)) for name, row in PRINTED.items()}
    nearest = min(distance, key=lambda name: distance[name])
    return {"nearest": nearest, "distance": distance[nearest]}
