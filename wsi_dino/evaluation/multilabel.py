"""Figures of merit where an image has several labels at once: every convention, each under a name of its own.

"Accuracy" of several labels can mean many things, and the same predictions give 0.4 by one and 0.9 by another.
So nothing here is called plain accuracy, precision or recall. With truth and prediction as ``(images, labels)``
tables of yes and no:

- ``accuracy_hamming``: share of all cells that agree.
- ``accuracy_macro``: the same label by label, then the mean (another figure only where labels are unknown).
- ``accuracy_subset``: share of images of which every label agrees.
- ``accuracy_example``: mean over images of agreed findings / findings of either (Jaccard).
- ``accuracy_top1``: share of images whose highest score is a label that they have.
- ``accuracy_balanced_macro``: mean over labels of (sensitivity + specificity) / 2.
- ``precision``, ``recall``, ``f1`` with ``_macro`` (positive class, mean over labels), ``_micro`` (all cells as
  one table), ``_weighted`` (mean over labels, weighed by their positives), ``_example`` (per image, mean over
  images), ``_two_class_macro`` (mean over both classes of each label, then over labels).
- ``f1_two_class_weighted``: F1 of both classes weighed by their size, mean over labels (CT-CLIP's F1).

0/0 (an image without findings, a label that is never called) counts as `zero_division`. A label of an image may
be unknown (NaN): that cell takes part in nothing.

Of rankings there are ``auc_macro`` (mean over labels), ``auc_macro_frequent`` (over labels with enough positive
images), ``auc_weighted`` (weighed by positives), ``auc_micro`` (all cells as one ranking) and
``average_precision_macro``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions
from wsi_dino.evaluation.metrics import weighted_auc

ACCURACIES = (
    "accuracy_hamming", "accuracy_macro", "accuracy_subset", "accuracy_example", "accuracy_top1",
    "accuracy_balanced_macro",
)  # fmt: skip
AVERAGES = ("macro", "micro", "weighted", "example", "two_class_macro")
CONVENTIONS = (
    *ACCURACIES,
    *(f"{kind}_{average}" for kind in ("precision", "recall", "f1") for average in AVERAGES),
    "f1_two_class_weighted",
)
RANKINGS = ("auc_macro", "auc_macro_frequent", "auc_weighted", "auc_micro", "average_precision_macro")
LABEL_FIGURES = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1")
_ROWS_AT_ONCE = 20  # of weights: 3 MB each for the cells of 25,000 images and 14 labels
_Ranking = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LabelPredictions:
    """What one fold said of its test images.

    Attributes:
        targets: float ``(n, n_labels)`` of 0 and 1, NaN where unknown.
        scores: float ``(n, n_labels)`` probabilities.
        patient_id: ``(n,)``, the unit that is resampled.
        predicted: bool ``(n, n_labels)``: scores at or above the fold's thresholds.
    """

    targets: np.ndarray
    scores: np.ndarray
    patient_id: Sequence[str]
    predicted: np.ndarray

    def __post_init__(self) -> None:
        shapes = {np.shape(self.targets), np.shape(self.scores), np.shape(self.predicted)}
        if len(shapes) != 1 or np.ndim(self.targets) != 2 or len(self.patient_id) != len(self.targets):
            raise ValueError(f"expected targets, scores and predicted of one shape (n, n_labels), got {shapes}")
        if not np.isfinite(self.scores).all():
            raise ValueError(f"scores have {int((~np.isfinite(self.scores)).sum())} values that are not finite")
        known = self.targets[~np.isnan(self.targets)]
        if not np.isin(known, (0, 1)).all():
            raise ValueError(f"targets must hold 0, 1 and NaN only, got {np.unique(known)[:5]}")

    def of_patients(self) -> FoldPredictions:
        """Return the fold as the bootstrap draws it: patients, in one stratum (labels would need one each)."""
        return FoldPredictions(np.zeros(len(self.targets), np.int64), np.zeros(len(self.targets)), self.patient_id)


# label by label -------------------------------------------------------------------------------
@dataclass(frozen=True)
class LabelCounts:
    """Confusion counts, weighted: ``(n_rows, n_labels)`` each, one row a row of weights."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    @property
    def n(self) -> np.ndarray:
        """Known cells of each label."""
        return np.asarray(self.tp + self.fp + self.fn + self.tn)


def count_labels(fold: LabelPredictions, weights: np.ndarray) -> LabelCounts:
    """Count hits and misses of each label for each row of image weights ``(n_rows, n)``."""
    yes, no, said = fold.targets == 1, fold.targets == 0, fold.predicted.astype(bool)
    cells = np.concatenate([yes & said, no & said, yes & ~said, no & ~said], axis=1).astype(np.float64)
    return LabelCounts(*np.split(weights @ cells, 4, axis=1))


def label_figures(fold: LabelPredictions, weights: np.ndarray, *, zero_division: float = 0.0) -> dict[str, np.ndarray]:
    """Return `LABEL_FIGURES` of each label, ``(n_rows, n_labels)``; NaN where no cell of the label is known.

    Precision, recall and F1 are of the positive class, and NaN where there is no positive image; balanced accuracy
    and specificity are NaN where a class is absent. Precision without a call is `zero_division`.
    """
    counts = count_labels(fold, weights)
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    recall, specificity = _ratio(tp, tp + fn, np.nan), _ratio(tn, tn + fp, np.nan)
    has_positive = tp + fn > 0
    return {
        "accuracy": _ratio(tp + tn, counts.n, np.nan),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": np.where(has_positive, _ratio(tp, tp + fp, zero_division), np.nan),
        "recall": recall,
        "specificity": specificity,
        "f1": np.where(has_positive, _ratio(2 * tp, 2 * tp + fp + fn, zero_division), np.nan),
    }


def _ratio(part: np.ndarray, whole: np.ndarray, zero_division: float) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), float(zero_division)), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is known."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1), np.nan)


# all conventions -------------------------------------------------------------------------------
def conventions(
    fold: LabelPredictions, weights: np.ndarray | None = None, *, zero_division: float = 0.0
) -> dict[str, np.ndarray]:
    """Return every one of `CONVENTIONS`, ``(n_rows,)`` each, one value for each row of image weights.

    Args:
        fold: predictions.
        weights: float ``(n_rows, n)``; None for one row of ones.
        zero_division: what 0/0 counts as, 0 or 1.

    Examples:
        >>> truth = np.array([[1.0, 0.0], [0.0, 0.0]])
        >>> fold = LabelPredictions(truth, np.array([[0.9, 0.8], [0.1, 0.2]]), ["a", "b"], truth == 1)
        >>> {name: float(conventions(fold)[name][0]) for name in ("accuracy_subset", "accuracy_example")}
        {'accuracy_subset': 1.0, 'accuracy_example': 0.5}
    """
    weights = np.ones((1, len(fold.targets))) if weights is None else weights
    counts = count_labels(fold, weights)
    figures = _over_labels(counts, zero_division) | _over_cells(counts, zero_division)
    figures |= _over_images(fold, weights, zero_division)
    return {name: figures[name] for name in CONVENTIONS}


def _over_labels(counts: LabelCounts, zero_division: float) -> dict[str, np.ndarray]:
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    is_known = counts.n > 0
    support, figures = tp + fn, {}
    both = (("precision", tp, tp + fp, tn, tn + fn), ("recall", tp, tp + fn, tn, tn + fp),
            ("f1", 2 * tp, 2 * tp + fp + fn, 2 * tn, 2 * tn + fp + fn))  # fmt: skip
    for kind, hits, called, negative_hits, negative_called in both:
        of_positive = np.where(is_known, _ratio(hits, called, zero_division), np.nan)
        of_negative = np.where(is_known, _ratio(negative_hits, negative_called, zero_division), np.nan)
        figures[f"{kind}_macro"] = _mean(of_positive)
        weighed = (np.nan_to_num(of_positive) * support).sum(1)
        figures[f"{kind}_weighted"] = _ratio(weighed, support.sum(1), zero_division)
        figures[f"{kind}_two_class_macro"] = _mean((of_positive + of_negative) / 2)
        if kind == "f1":
            shares = _ratio(support, counts.n, np.nan)
            figures["f1_two_class_weighted"] = _mean(shares * of_positive + (1 - shares) * of_negative)
    figures["accuracy_macro"] = _mean(_ratio(tp + tn, counts.n, np.nan))
    balanced = (_ratio(tp, tp + fn, np.nan) + _ratio(tn, tn + fp, np.nan)) / 2
    return figures | {"accuracy_balanced_macro": _mean(balanced)}


def _over_cells(counts: LabelCounts, zero_division: float) -> dict[str, np.ndarray]:
    tp, fp, fn, tn = (cells.sum(1) for cells in (counts.tp, counts.fp, counts.fn, counts.tn))
    return {
        "accuracy_hamming": _ratio(tp + tn, tp + fp + fn + tn, np.nan),
        "precision_micro": _ratio(tp, tp + fp, zero_division),
        "recall_micro": _ratio(tp, tp + fn, zero_division),
        "f1_micro": _ratio(2 * tp, 2 * tp + fp + fn, zero_division),
    }


def _over_images(fold: LabelPredictions, weights: np.ndarray, zero_division: float) -> dict[str, np.ndarray]:
    known, has_known = ~np.isnan(fold.targets), ~np.isnan(fold.targets).all(1)
    yes, said = fold.targets == 1, fold.predicted.astype(bool) & known
    agreed, n_yes, n_said = (yes & said).sum(1), yes.sum(1), said.sum(1)
    top = np.where(known, fold.scores, -np.inf).argmax(1)
    of_image = {
        "accuracy_subset": ((yes == said) | ~known).all(1).astype(np.float64),
        "accuracy_example": _ratio(agreed, (yes | said).sum(1), zero_division),
        "accuracy_top1": yes[np.arange(len(yes)), top].astype(np.float64),
        "precision_example": _ratio(agreed, n_said, zero_division),
        "recall_example": _ratio(agreed, n_yes, zero_division),
        "f1_example": _ratio(2 * agreed, n_yes + n_said, zero_division),
    }
    taking_part = weights * has_known
    table = taking_part @ np.stack(list(of_image.values()), axis=1)
    return dict(zip(of_image, _ratio(table, taking_part.sum(1, keepdims=True) + 0 * table, np.nan).T, strict=True))


def undefined_figures(fold: LabelPredictions, label_names: Sequence[str]) -> list[str]:
    """Name what is 0/0 in this fold: ``precision[Hernia]`` and the like."""
    counts = count_labels(fold, np.ones((1, len(fold.targets))))
    wholes = {"precision": counts.tp + counts.fp, "recall": counts.tp + counts.fn, "specificity": counts.tn + counts.fp}
    return [
        f"{kind}[{name}]" for kind, whole in wholes.items() for name, n in zip(label_names, whole[0], strict=True)
        if n == 0
    ]  # fmt: skip


# rankings --------------------------------------------------------------------------------------
def label_aucs(fold: LabelPredictions, weights: np.ndarray) -> np.ndarray:
    """Return the AUC of each label, ``(n_rows, n_labels)``; NaN where a class has no weight."""
    return _by_label(fold, weights, weighted_auc)


def label_average_precisions(fold: LabelPredictions, weights: np.ndarray) -> np.ndarray:
    """Return the average precision of each label, ``(n_rows, n_labels)``; NaN where a class has no weight."""
    return _by_label(fold, weights, weighted_average_precision)


def _by_label(fold: LabelPredictions, weights: np.ndarray, figure: _Ranking) -> np.ndarray:
    result = np.full((len(weights), fold.targets.shape[1]), np.nan)
    for label, (positive, score, known) in enumerate(_columns(fold)):
        if positive.any() and not positive.all():
            result[:, label] = figure(positive, score, weights if known is None else weights[:, known])
    return result


def _columns(fold: LabelPredictions) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    for label in range(fold.targets.shape[1]):
        target, score = fold.targets[:, label], fold.scores[:, label]
        unknown = np.isnan(target)
        yield (target == 1, score, None) if not unknown.any() else (target[~unknown] == 1, score[~unknown], ~unknown)


def weighted_average_precision(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision (no interpolation) for each row of image weights; NaN where no positive has weight."""
    order = np.argsort(-score, kind="stable")
    score, positive, weights = score[order], positive[order], weights[:, order]
    ends = np.flatnonzero(np.r_[score[1:] != score[:-1], True])
    hits = np.cumsum(weights * positive, axis=1)[:, ends]
    called = np.cumsum(weights, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    return _ratio((_ratio(hits, called, 0.0) * gained).sum(1), hits[:, -1], np.nan)


def micro_auc(fold: LabelPredictions, weights: np.ndarray) -> np.ndarray:
    """Return the AUC of all known cells as one ranking, ``(n_rows,)``; NaN where a class has no weight."""
    known = ~np.isnan(fold.targets)
    images = np.broadcast_to(np.arange(len(known))[:, None], known.shape)[known]
    return weighted_auc(fold.targets[known] == 1, fold.scores[known], weights[:, images])


def in_parts(compute: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return `compute` of all rows of image weights, a few rows at a time: memory stays flat."""
    return np.concatenate([compute(weights[at : at + _ROWS_AT_ONCE]) for at in range(0, len(weights), _ROWS_AT_ONCE)])
