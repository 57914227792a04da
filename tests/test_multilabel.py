"""Figures of several labels at once: against scikit-learn, and by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from wsi_dino.errors import ConfigError, SplitError
from wsi_dino.evaluation.label_evaluation import EvaluationSpec, FoldScores, evaluate_labels
from wsi_dino.evaluation.label_folds import make_label_folds, rows_of_folds, split_of_subsets
from wsi_dino.evaluation.label_thresholds import choose_label_thresholds
from wsi_dino.evaluation.linear_probe import LinearProbeSpec, LogisticSpec, fit_linear_probe, fit_logistic
from wsi_dino.evaluation.multilabel import (
    CONVENTIONS,
    LabelPredictions,
    conventions,
    label_aucs,
    label_average_precisions,
    label_figures,
    micro_auc,
    undefined_figures,
)
from wsi_dino.evaluation.probing import probe_folds
from wsi_dino.evaluation.threshold import best_cut


def _fold(n: int = 300, n_labels: int = 6, seed: int = 0) -> LabelPredictions:
    random = np.random.default_rng(seed)
    scores = random.random((n, n_labels)).round(2)
    targets = (random.random((n, n_labels)) < 0.05 + 0.3 * scores).astype(float)
    return LabelPredictions(targets, scores, [f"p{i // 2}" for i in range(n)], scores >= 0.6)


@pytest.mark.parametrize("zero_division", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_conventions_equal_scikit_learn(zero_division: int, seed: int) -> None:
    fold = _fold(seed=seed)
    y, said = fold.targets.astype(int), fold.predicted.astype(int)
    figures = {name: value[0] for name, value in conventions(fold, zero_division=zero_division).items()}
    expected = {
        "accuracy_hamming": 1 - sk.hamming_loss(y, said),
        "accuracy_subset": sk.accuracy_score(y, said),
        "accuracy_example": sk.jaccard_score(y, said, average="samples", zero_division=zero_division),
        "accuracy_balanced_macro": np.mean([sk.balanced_accuracy_score(y[:, i], said[:, i]) for i in range(6)]),
    }
    for kind in ("precision", "recall", "f1"):
        score: Any = getattr(sk, f"{kind}_score")
        for ours, theirs in (("macro", "macro"), ("micro", "micro"), ("weighted", "weighted"), ("example", "samples")):
            expected[f"{kind}_{ours}"] = score(y, said, average=theirs, zero_division=zero_division)
        each = [score(y[:, i], said[:, i], average="macro", zero_division=zero_division) for i in range(6)]
        expected[f"{kind}_two_class_macro"] = np.mean(each)
    each = [sk.f1_score(y[:, i], said[:, i], average="weighted") for i in range(6)]
    expected["f1_two_class_weighted"] = np.mean(each)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-12), name
    assert set(figures) == set(CONVENTIONS)


def test_zero_over_zero_is_what_was_asked() -> None:
    """Neither truth nor prediction has a finding: scikit-learn's two answers."""
    empty = np.zeros((2, 3))
    fold = LabelPredictions(empty, empty, ["a", "b"], empty.astype(bool))
    for zero_division in (0, 1):
        figures = conventions(fold, zero_division=zero_division)
        for name in ("accuracy_example", "precision_macro", "recall_micro", "f1_example"):
            assert figures[name][0] == zero_division, name
        assert figures["accuracy_subset"][0] == 1
    assert "precision[b]" in undefined_figures(fold, "abc")


def test_by_hand() -> None:
    targets = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]], float)
    said = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]], bool)
    scores = np.array([[0.9, 0.2, 0.1], [0.1, 0.8, 0.7], [0.3, 0.2, 0.1], [0.2, 0.1, 0.9]])
    figures = {name: value[0] for name, value in conventions(LabelPredictions(targets, scores, "abcd", said)).items()}
    assert figures["accuracy_hamming"] == 9 / 12
    assert figures["accuracy_subset"] == 1 / 4
    assert figures["accuracy_example"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 1 / 2) / 4)
    assert figures["accuracy_top1"] == 3 / 4
    assert figures["precision_micro"] == 3 / 4
    assert figures["recall_micro"] == 3 / 5


def test_a_weight_of_two_is_an_image_twice() -> None:
    fold = _fold(40)
    random = np.random.default_rng(3)
    weights = random.integers(0, 3, (2, 40)).astype(float)
    rows = np.repeat(np.arange(40), weights[1].astype(int))
    again = LabelPredictions(fold.targets[rows], fold.scores[rows], rows.tolist(), fold.predicted[rows])
    for weighted, repeated in (
        (conventions(fold, weights), conventions(again)),
        ({"auc": label_aucs(fold, weights)}, {"auc": label_aucs(again, np.ones((1, len(rows))))}),
        (label_figures(fold, weights), label_figures(again, np.ones((1, len(rows))))),
    ):
        for name, value in weighted.items():
            np.testing.assert_allclose(value[1], repeated[name][0], err_msg=name)


def test_rankings_equal_scikit_learn() -> None:
    fold, ones = _fold(), np.ones((1, 300))
    aucs, precisions = label_aucs(fold, ones)[0], label_average_precisions(fold, ones)[0]
    for label in range(6):
        y, score = fold.targets[:, label], fold.scores[:, label]
        assert aucs[label] == pytest.approx(sk.roc_auc_score(y, score))
        assert precisions[label] == pytest.approx(sk.average_precision_score(y, score))
    assert micro_auc(fold, ones)[0] == pytest.approx(sk.roc_auc_score(fold.targets, fold.scores, average="micro"))


def test_an_unknown_cell_takes_part_in_nothing() -> None:
    fold = _fold(60, 1)
    targets = fold.targets.copy()
    targets[:20] = np.nan
    with_gaps = LabelPredictions(targets, fold.scores, fold.patient_id, fold.predicted)
    without = LabelPredictions(targets[20:], fold.scores[20:], fold.patient_id[20:], fold.predicted[20:])
    for name, value in conventions(with_gaps).items():
        assert value[0] == pytest.approx(conventions(without)[name][0]), name
    assert label_aucs(with_gaps, np.ones((1, 60)))[0, 0] == label_aucs(without, np.ones((1, 40)))[0, 0]


# thresholds ------------------------------------------------------------------------------------
@pytest.mark.parametrize("criterion", ["youden", "f1", "corner"])
def test_no_other_cut_is_better(criterion: Any) -> None:
    random = np.random.default_rng(5)
    score = random.random(200).round(2)
    y = (random.random(200) < score**2).astype(int)

    def gain(cut: float) -> float:
        said = score >= cut
        tpr, fpr = sk.recall_score(y, said), 1 - sk.recall_score(1 - y, ~said)
        return {"youden": tpr - fpr, "f1": sk.f1_score(y, said), "corner": -float(np.hypot(1 - tpr, fpr))}[criterion]

    assert gain(best_cut(y, score, criterion)) >= max(gain(cut) for cut in np.linspace(0, 1, 201)) - 1e-12


def test_youden_and_the_corner_are_different_points() -> None:
    """ROC points (0, 0.55) and (0.4, 0.95 - 1e-3): Youden takes the first, the corner the second."""
    y = np.r_[np.ones(100), np.zeros(100)].astype(int)
    score = np.r_[np.full(55, 0.9), np.full(39, 0.6), np.full(6, 0.1), np.full(40, 0.6), np.full(60, 0.1)]
    assert best_cut(y, score, "youden") > 0.6
    assert best_cut(y, score, "corner") <= 0.6


def test_a_label_without_positives_falls_back_and_says_so() -> None:
    targets, scores = np.array([[1, 0], [0, 0]], float), np.array([[0.3, 0.2], [0.1, 0.4]])
    chosen = choose_label_thresholds(targets, scores, ["a", "b"], "f1-on-validation", fixed=0.4)
    assert chosen.values.tolist() == [0.2, 0.4]
    assert chosen.fallbacks == {"b": "no positive image"}
    with pytest.raises(ConfigError, match="Did you mean 'youden-on-validation'"):
        choose_label_thresholds(targets, scores, ["a", "b"], "youden-validation")  # type: ignore[arg-type]


# folds -----------------------------------------------------------------------------------------
def test_folds_spread_labels_and_keep_patients_whole() -> None:
    random = np.random.default_rng(0)
    patients = [f"p{i}" for i in random.integers(0, 400, 1000)]
    targets = (random.random((1000, 5)) < [0.4, 0.1, 0.05, 0.02, 0.0]).astype(float)
    split = make_label_folds(patients, targets, 5, seed=1)
    folds = rows_of_folds(split, patients)
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(1000))
    for label in range(4):
        owners = {p for p, t in zip(patients, targets[:, label], strict=True) if t}
        counts = [len(owners & set(fold.test)) for fold in split]
        assert max(counts) - min(counts) <= max(3, 0.1 * len(owners) / 5), (label, counts)
    for fold in split:
        assert not set(fold.train) & set(fold.val) | set(fold.train) & set(fold.test) | set(fold.val) & set(fold.test)
        assert len(fold.val) == pytest.approx(len(fold.train) / 7, rel=0.1)
    order = random.permutation(1000)
    again = make_label_folds([patients[i] for i in order], targets[order], 5, seed=1)
    assert again.fingerprint == split.fingerprint
    assert make_label_folds(patients, targets, 5, seed=2).fingerprint != split.fingerprint


def test_given_subsets() -> None:
    patients = ["a", "a", "b", "c", "d", "e"]
    targets = np.array([[1], [0], [0], [1], [0], [1]], float)
    subset = ["train", "train", "train", "train", "test", "test"]
    (fold,) = split_of_subsets(patients, subset, targets, scheme="official")
    assert set(fold.test) == {"d", "e"}
    assert set(fold.train) | set(fold.val) == {"a", "b", "c"}
    with pytest.raises(SplitError, match="patient a stands in both train and test"):
        split_of_subsets(patients, ["train", "test", "train", "train", "test", "test"], targets)
    with pytest.raises(SplitError, match="no image of subset test"):
        split_of_subsets(patients, ["train"] * 6, targets)


# probes ----------------------------------------------------------------------------------------
def _planted(n: int = 600, width: int = 20, n_labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    features = random.normal(size=(n, width)).astype(np.float32) * 3 + 1
    logits = (features - 1) @ random.normal(size=(width, n_labels)) / 3
    return features, (random.random((n, n_labels)) < 1 / (1 + np.exp(-logits))).astype(float)


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_equals_scikit_learn_label_by_label(c: float) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, targets = _planted()
    model = fit_logistic(features, targets, features, targets, LogisticSpec(c_values=(c,), max_iterations=2000))
    x = StandardScaler().fit_transform(features)
    for label in range(3):
        theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-10).fit(x, targets[:, label])
        np.testing.assert_allclose(model.weight[:, label], theirs.coef_[0], atol=2e-4)
        expected = theirs.predict_proba(x)[:, 1]
        np.testing.assert_allclose(model.scores(features)[:, label], expected, atol=2e-4)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("standardise", [True, False])
def test_probe_finds_a_planted_signal(optimiser: Any, standardise: bool) -> None:
    features, targets = _planted()
    targets[:50, 0] = np.nan
    model = fit_linear_probe(features, targets, LinearProbeSpec(optimiser=optimiser, standardise=standardise))
    scores = model.scores(features)
    for label in range(3):
        known = ~np.isnan(targets[:, label])
        assert sk.roc_auc_score(targets[known, label], scores[known, label]) > 0.8
    again = fit_linear_probe(features, targets, LinearProbeSpec(optimiser=optimiser, standardise=standardise))
    np.testing.assert_array_equal(model.weight, again.weight)


def test_probe_takes_adams_steps() -> None:
    """One batch, one label, one feature: the same numbers as Adam written out."""
    x, y = np.array([[1.0], [2.0], [-1.0]], np.float32), np.array([[1.0], [1.0], [0.0]])
    model = fit_linear_probe(x, y, LinearProbeSpec(n_epochs=3, standardise=False, initial_bias="zero"))
    w = b = 0.0
    first, second = np.zeros(2), np.zeros(2)
    for step in range(1, 4):
        error = 1 / (1 + np.exp(-(x[:, 0] * w + b))) - y[:, 0]
        gradient = np.array([(error * x[:, 0]).mean(), error.mean()])
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        move = 0.005 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        w, b = w - move[0], b - move[1]
    assert model.weight[0, 0] == pytest.approx(w, rel=1e-5)
    assert model.bias[0] == pytest.approx(b, rel=1e-5)


def test_without_a_signal_scores_are_the_share_of_positives() -> None:
    random = np.random.default_rng(0)
    features, targets = np.zeros((300, 4)), (random.random((300, 1)) < 0.1).astype(float)
    score = fit_linear_probe(features, targets, LinearProbeSpec(n_epochs=1)).scores(features)
    assert score[0, 0] == pytest.approx(targets.mean(), abs=0.01)


def test_labels_do_not_touch_each_other() -> None:
    features, targets = _planted()
    together = fit_linear_probe(features, targets, LinearProbeSpec())
    order = fit_linear_probe(features, targets[:, ::-1].copy(), LinearProbeSpec())
    np.testing.assert_allclose(together.weight, order.weight[:, ::-1], rtol=1e-5)


def test_probe_refuses_what_is_no_number() -> None:
    features, targets = _planted(20)
    features[7, 3] = np.nan
    with pytest.raises(ConfigError, match="row 7"):
        fit_linear_probe(features, targets, LinearProbeSpec())
    with pytest.raises(ConfigError, match="0, 1 or NaN"):
        fit_linear_probe(features[:5], np.full((5, 1), 2.0), LinearProbeSpec())


# everything together ---------------------------------------------------------------------------
def _scores(rare: bool) -> tuple[list[FoldScores], np.ndarray]:
    features, targets = _planted(500)
    if rare:
        targets[:, 2] = 0
        targets[0, 2] = 1
    patients = [f"p{i // 2}" for i in range(500)]
    folds = rows_of_folds(make_label_folds(patients, targets), patients)
    return probe_folds(features, targets, patients, folds, LogisticSpec())[0], targets


def test_value_is_the_mean_over_folds_and_lies_in_its_interval() -> None:
    folds, _ = _scores(rare=False)
    result = evaluate_labels(folds, ["a", "b", "c"], EvaluationSpec(n_resamples=200))
    for label, name in enumerate("abc"):
        expected = np.mean([sk.roc_auc_score(f.targets[:, label], f.scores[:, label]) for f in folds])
        auc = result["labels"][name]["auc"]
        assert auc["value"] == pytest.approx(expected)
        assert auc["low"] < auc["value"] < auc["high"]
    for figure in [*result["summary"].values(), *(label["average_precision"] for label in result["labels"].values())]:
        assert figure["low"] <= figure["value"] <= figure["high"]
    macro = np.mean([result["labels"][name]["auc"]["value"] for name in "abc"])
    assert result["summary"]["auc_macro"]["value"] == pytest.approx(macro)
    assert evaluate_labels(folds, ["a", "b", "c"], EvaluationSpec(n_resamples=200)) == result


def test_a_label_without_positives_in_a_fold_is_said() -> None:
    folds, targets = _scores(rare=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate_labels(folds, ["a", "b", "c"], EvaluationSpec(n_resamples=100))
    rare = result["labels"]["c"]
    assert rare["auc"]["n_folds"] == 1
    assert "tests on no positive image" in rare["auc"]["why"]
    assert "mean of the other 1" in rare["auc"]["why"]
    assert rare["n_positive"] == 1
    none = [
        FoldScores(f.targets * [1, 1, 0], f.scores, f.patient_id, f.val_targets, f.val_scores, f.rows) for f in folds
    ]
    result = evaluate_labels(none, ["a", "b", "c"], EvaluationSpec(n_resamples=100))
    assert result["labels"]["c"]["auc"]["value"] is None
    assert "not defined" in result["labels"]["c"]["auc"]["why"]
    assert result["summary"]["auc_macro"]["n_labels"] == 2
    del targets


def test_test_labels_choose_thresholds_only_when_asked() -> None:
    folds, _ = _scores(rare=False)
    honest = evaluate_labels(folds, "abc", EvaluationSpec(n_resamples=100))["conventions"]
    assert not any(entry["optimistic"] for entry in honest.values())
    asked = evaluate_labels(folds, "abc", EvaluationSpec(n_resamples=100, optimistic=True))["conventions"]
    assert [name for name, entry in asked.items() if entry["optimistic"]] == [
        "youden-on-test", "corner-on-test", "f1-on-test",
    ]  # fmt: skip
    f1 = [asked[f"f1-on-{where}"]["figures"]["f1_macro"]["value"] for where in ("validation", "test")]
    assert f1[1] >= f1[0]
