"""Figures of merit against scikit-learn, and their defined behaviour where a ratio is 0/0."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from wsi_dino.evaluation.calibration import compute_reliability
from wsi_dino.evaluation.metrics import binary_metrics, confusion, multiclass_metrics, roc_curve
from wsi_dino.evaluation.threshold import choose_threshold


def _binary(seed: int, n: int = 60, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.r_[0, 1, rng.integers(0, 2, n - 2)])
    score = np.clip(rng.normal(0.4 + 0.2 * y, 0.25), 0, 1)
    return y, np.round(score * levels) / levels if levels else score


@pytest.mark.parametrize("levels", [None, 5])  # 5: many ties
@pytest.mark.parametrize("seed", range(5))
def test_binary_figures_equal_scikit_learn(seed: int, levels: int | None) -> None:
    y, score = _binary(seed, levels=levels)
    ours, predicted = binary_metrics(y, score, 0.45), score >= 0.45
    theirs = {
        "auc": sk.roc_auc_score(y, score),
        "average_precision": sk.average_precision_score(y, score),
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "precision": sk.precision_score(y, predicted),
        "recall": sk.recall_score(y, predicted),
        "specificity": sk.recall_score(y, predicted, pos_label=0),
        "f1": sk.f1_score(y, predicted),
        "brier": sk.brier_score_loss(y, score),
    }
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs)
    assert ours["undefined"] == []


@pytest.mark.parametrize("seed", range(5))
def test_multiclass_figures_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.r_[0, 1, 2, rng.integers(0, 3, 40)])
    scores = rng.dirichlet(np.ones(3), len(y)) + np.eye(3)[y] * 0.3
    scores /= scores.sum(1, keepdims=True)
    ours, predicted = multiclass_metrics(y, scores), scores.argmax(1)
    theirs = {
        "auc": sk.roc_auc_score(y, scores, multi_class="ovr"),
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "precision": sk.precision_score(y, predicted, average="macro", zero_division=0),
        "recall": sk.recall_score(y, predicted, average="macro"),
        "f1": sk.f1_score(y, predicted, average="macro"),
    }
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs)
    assert (confusion(y, predicted, 3) == sk.confusion_matrix(y, predicted)).all()


def test_nothing_predicted_positive_is_named() -> None:
    figures = binary_metrics(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3]), 0.9)
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0.0, 0.0, 0.0)
    assert figures["undefined"] == ["precision"]


def test_one_class_only_is_named() -> None:
    figures = binary_metrics(np.array([0, 0]), np.array([0.1, 0.2]), 0.5)
    assert np.isnan(figures["auc"])
    assert np.isnan(figures["average_precision"])
    assert set(figures["undefined"]) == {"auc", "average_precision", "recall", "precision", "f1"}
    assert figures["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("y", "score"), [([0, 1], [0.1, np.nan]), ([0, 2], [0.1, 0.2]), ([0, 1, 1], [0.1, 0.2]), ([[0]], [[0.1]])]
)
def test_nonsense_is_refused(y: list, score: list) -> None:
    with pytest.raises(ValueError, match=r"score|y_true"):
        binary_metrics(np.array(y), np.array(score), 0.5)


def test_roc_curve_encloses_the_auc() -> None:
    y, score = _binary(3, levels=8)
    false, true, threshold = roc_curve(y, score)
    assert np.trapezoid(true, false) == pytest.approx(sk.roc_auc_score(y, score))
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert threshold[0] == np.inf


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [None, 6])
def test_youden_threshold_is_best_of_all_cuts(seed: int, levels: int | None) -> None:
    y, score = _binary(seed, 20, levels)
    chosen = choose_threshold(y, score)
    cuts = np.r_[0, np.unique(score), 1.1]
    best = max(sk.balanced_accuracy_score(y, score >= cut) for cut in cuts)
    assert sk.balanced_accuracy_score(y, score >= chosen.value) == pytest.approx(best)
    f1 = choose_threshold(y, score, "f1-on-validation")
    assert sk.f1_score(y, score >= f1.value) == pytest.approx(max(sk.f1_score(y, score >= cut) for cut in cuts))


def test_separable_validation_gives_one_half_where_it_may() -> None:
    assert choose_threshold(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.7])).value == 0.5
    assert choose_threshold(np.array([0, 0, 1]), np.array([0.1, 0.6, 0.8])).value == pytest.approx(0.7)
    assert choose_threshold(np.array([0, 1]), np.array([0.9, 0.1]), "fixed-0.5").value == 0.5


def test_calibrated_scores_have_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    score = rng.uniform(size=200_000)
    curve = compute_reliability(rng.uniform(size=len(score)) < score, score)
    assert curve.expected_calibration_error < 0.01
    assert curve.count.sum() == len(score)
    off = compute_reliability(rng.uniform(size=len(score)) < score**2, score)
    assert off.expected_calibration_error == pytest.approx(1 / 6, abs=0.01)
