"""Both averages against scikit-learn, and rows of known making told apart."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.averaging import PrintedRow, average_both_ways, check_row, implied_prevalence
from wsi_dino.evaluation.bootstrap import FoldPredictions
from wsi_dino.evaluation.published import TABLES, published_section

SCORERS = {"precision": precision_score, "recall": recall_score, "f1": f1_score}


def _folds(n_classes: int = 2) -> list[FoldPredictions]:
    folds = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, n_classes, 60)
        scores = rng.dirichlet(np.ones(n_classes), 60) + 0.4 * np.eye(n_classes)[y]
        scores /= scores.sum(1, keepdims=True)
        patients = [f"{seed}-{i}" for i in range(60)]
        folds.append(FoldPredictions(y, scores[:, 1] if n_classes == 2 else scores, patients, 0.4))
    return folds


@pytest.mark.parametrize(("way", "average"), [("positive_class", "binary"), ("macro", "macro")])
def test_two_classes_equal_scikit_learn(way: str, average: str) -> None:
    folds = _folds()
    averages = average_both_ways(folds, n_resamples=200)[way]
    for name, scorer in SCORERS.items():
        each = [scorer(fold.y_true, fold.scores >= fold.threshold, average=average) for fold in folds]
        assert averages[name]["value"] == pytest.approx(np.mean(each))
        assert averages[name]["std"] == pytest.approx(np.std(each, ddof=1))
        assert averages[name]["low"] < averages[name]["value"] < averages[name]["high"]


def test_three_classes_have_no_positive_one() -> None:
    folds = _folds(3)
    averages = average_both_ways(folds, n_resamples=100)
    assert list(averages) == ["macro"]
    each = [recall_score(fold.y_true, fold.scores.argmax(1), average="macro") for fold in folds]
    assert averages["macro"]["recall"]["value"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_known_making_are_recognised(seed: int) -> None:
    """Any confusion table, printed to three decimals by either way, fits that way to rounding."""
    rng = np.random.default_rng(seed)
    n_positive, n_negative = int(rng.integers(20, 300)), int(rng.integers(20, 300))
    y = np.r_[np.ones(n_positive, int), np.zeros(n_negative, int)]
    said = np.where(rng.random(len(y)) < 0.75, y, 1 - y)
    for convention, average in (("positive class", "binary"), ("macro over classes", "macro")):
        figures = [accuracy_score(y, said), *(SCORERS[n](y, said, average=average) for n in ("precision", "recall"))]
        check = check_row(PrintedRow(*(round(value, 3) for value in figures)), n_positive, n_negative)
        verdicts = {fit.convention: fit.verdict for fit in check.fits}
        assert verdicts[convention] == "fits"
        assert convention in check.conclusion
        if convention == "positive class":
            value, low, high = check.implied_prevalence
            assert low - 1e-9 <= n_positive / len(y) <= high + 1e-9
            assert low <= value <= high


def test_uneven_classes_tell_the_ways_apart() -> None:
    y = np.r_[np.ones(60, int), np.zeros(240, int)]
    said = np.r_[np.ones(48, int), np.zeros(12, int), np.ones(36, int), np.zeros(204, int)]
    macro = [accuracy_score(y, said), *(SCORERS[n](y, said, average="macro") for n in ("precision", "recall"))]
    check = check_row(PrintedRow(*(round(value, 3) for value in macro)), 60, 240)
    assert check.conclusion == "macro over classes"
    assert {fit.convention: fit.verdict for fit in check.fits}["positive class"] == "does not fit"


def test_another_test_set_is_found_out() -> None:
    """A row of a balanced set does not pass for one with a tenth of positives."""
    check = check_row(PrintedRow(0.8, 0.8, 0.8), 100, 900)
    assert "neither" in check.conclusion
    assert check.implied_prevalence[0] == pytest.approx(0.5)


def test_auc_that_no_curve_through_the_point_can_have_does_not_fit() -> None:
    assert check_row(PrintedRow(0.8, 0.8, 0.8, 0.8), 50, 50).fits[0].verdict == "fits"
    assert check_row(PrintedRow(0.8, 0.8, 0.8, 0.5), 50, 50).fits[0].verdict == "does not fit"


def test_papers_rows_imply_what_the_facts_say() -> None:
    """Shares of positives computed by hand from the printed figures."""
    expected = {
        ("Table 2", "biomedclip"): 0.2482, ("Table 2", "dinov3-s"): 0.2480, ("Table 2", "dinov3-b"): 0.2475,
        ("Table 2", "dinov3-l"): 0.2395,
        ("Table 3", "resnet50"): 0.3804, ("Table 3", "uni"): 0.480, ("Table 3", "conch"): 0.488,
        ("Table 3", "dinov3-s"): 0.387, ("Table 3", "dinov3-b"): 0.403, ("Table 4", "resnet50"): 0.387,
        ("Table 4", "uni"): 0.454, ("Table 4", "conch"): 0.403, ("Table 4", "dinov3-s"): 0.328,
        ("Table 4", "dinov3-b"): 0.319,
    }  # fmt: skip
    found = {(table.name, row.encoder): implied_prevalence(row.printed) for table in TABLES for row in table.rows}
    assert {key: value[0] for key, value in found.items() if value} == pytest.approx(expected, abs=6e-4)


def test_papers_rows_do_not_share_one_way() -> None:
    [section] = published_section("camelyon16-cv")
    can_be = {row["encoder"]: row["can_be"] for row in section["rows"]}
    assert can_be["resnet50"] == "positive class"
    assert can_be["uni"] == can_be["conch"] == "macro over classes"
    assert published_section("bcnb-er") == []


def test_perfect_and_empty_rows_imply_nothing() -> None:
    assert implied_prevalence(PrintedRow(1.0, 1.0, 1.0)) is None
    assert implied_prevalence(PrintedRow(0.6, 0.0, 0.0)) is None
    assert check_row(PrintedRow(1.0, 1.0, 1.0, 1.0), 3, 4).conclusion == "positive class or macro over classes"


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision"):
        PrintedRow(0.8, 80.0, 0.8)
    with pytest.raises(ConfigError, match="both classes"):
        check_row(PrintedRow(0.8, 0.8, 0.8), 0, 10)
