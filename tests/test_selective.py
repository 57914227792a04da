"""Risk-coverage against dropping slides by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsi_dino.evaluation.bootstrap import FoldPredictions
from wsi_dino.evaluation.selective import (
    COVERAGES,
    accuracy_at,
    auc_at,
    aurc,
    best_aurc,
    confidence_of,
    is_right,
    selective_section,
)


def _fold(seed: int = 0, n: int = 60, threshold: float = 0.4) -> FoldPredictions:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return FoldPredictions(y, 1 / (1 + np.exp(-rng.normal(2.0 * y - 1, 1.5))), [str(i) for i in range(n)], threshold)


def _once(fold: FoldPredictions) -> np.ndarray:
    return np.ones((1, len(fold.y_true)))


def test_accuracy_equals_dropping_the_least_sure_by_hand() -> None:
    fold = _fold(n=60)  # each coverage is a whole number of slides
    order = np.argsort(-confidence_of(fold))
    expected = [is_right(fold)[order[: round(share * 60)]].mean() for share in COVERAGES]
    assert accuracy_at(fold, _once(fold))[0] == pytest.approx(expected)


def test_area_equals_the_mean_risk_by_hand() -> None:
    fold = _fold(1)
    wrong = ~is_right(fold)[np.argsort(-confidence_of(fold))]
    assert aurc(fold, _once(fold))[0] == pytest.approx(np.mean(np.cumsum(wrong) / np.arange(1, 61)))


def test_equal_confidence_counts_as_random_order() -> None:
    y, rng = np.array([0, 1, 1, 0, 1, 0, 1, 1]), np.random.default_rng(0)
    scores = np.array([0.9, 0.9, 0.9, 0.1, 0.1, 0.7, 0.7, 0.7])
    fold = FoldPredictions(y, scores, list("abcdefgh"), 0.5)
    confidence, areas = confidence_of(fold), []
    for _ in range(4000):
        order = np.lexsort((rng.random(8), -np.round(confidence, 9)))
        areas.append(np.mean(np.cumsum(~is_right(fold)[order]) / np.arange(1, 9)))
    assert aurc(fold, _once(fold))[0] == pytest.approx(np.mean(areas), abs=0.01)


def test_counts_as_weights_equal_repeated_slides() -> None:
    fold, counts = _fold(2), np.random.default_rng(1).integers(0, 4, 60)
    repeated = FoldPredictions(np.repeat(fold.y_true, counts), np.repeat(fold.scores, counts), [], fold.threshold)
    for figure in (aurc, accuracy_at):
        assert figure(fold, counts[None].astype(float)) == pytest.approx(figure(repeated, _once(repeated)))


def test_auc_of_the_kept_equals_scikit_learn() -> None:
    fold = _fold(3)
    kept = np.argsort(-confidence_of(fold))[:30]
    assert auc_at(fold, 0.5) == pytest.approx(roc_auc_score(fold.y_true[kept], fold.scores[kept]))
    assert auc_at(fold, 1.0) == pytest.approx(roc_auc_score(fold.y_true, fold.scores))


def test_bounds_of_the_area() -> None:
    fold = _fold(4)
    right = is_right(fold)
    oracle = FoldPredictions(fold.y_true, np.where(right, 0.9, 0.6)[:, None] * np.eye(2)[fold.y_true], [])
    oracle_right = np.where(right[:, None], oracle.scores, oracle.scores[:, ::-1])
    assert aurc(FoldPredictions(fold.y_true, oracle_right, []), _once(fold))[0] == pytest.approx(best_aurc(fold))
    constant = FoldPredictions(fold.y_true, np.full(60, 0.7), fold.patient_id, 0.5)
    assert aurc(constant, _once(fold))[0] == pytest.approx(0.5)
    assert best_aurc(fold) < aurc(fold, _once(fold))[0] < 0.5


def test_section_at_full_coverage_is_the_accuracy() -> None:
    folds = [_fold(seed) for seed in range(3)]
    section = selective_section(folds, n_resamples=100)
    assert section["coverage"][-1] == 1
    assert section["accuracy"]["value"][-1] == pytest.approx(np.mean([is_right(fold).mean() for fold in folds]))
    assert section["accuracy"]["low"][-1] <= section["accuracy"]["value"][-1] <= section["accuracy"]["high"][-1]
    assert section["aurc_of_random"] == pytest.approx(1 - section["accuracy"]["value"][-1])
    assert section["aurc"]["low"] <= section["aurc"]["value"] <= section["aurc"]["high"]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_threshold_at_the_end_of_the_scale(threshold: float) -> None:
    fold = FoldPredictions(np.array([0, 1, 1]), np.array([0.0, 0.5, 1.0]), list("abc"), threshold)
    assert np.isfinite(confidence_of(fold)).all()


def test_one_class_left_gives_no_auc_but_an_accuracy() -> None:
    fold = FoldPredictions(np.array([0, 0, 1]), np.array([0.01, 0.02, 0.6]), list("abc"), 0.5)
    section = selective_section([fold], n_resamples=20)
    assert np.isnan(section["auc"][0])
    assert np.isfinite(section["accuracy"]["value"]).all()


def test_three_classes_are_as_sure_as_their_highest_score() -> None:
    fold = FoldPredictions(np.array([0, 1, 2]), np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.4, 0.3, 0.3]]), [])
    assert confidence_of(fold).tolist() == [0.5, 0.7, 0.4]
    assert is_right(fold).tolist() == [True, True, False]
