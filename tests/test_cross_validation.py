"""A fold from training to figures, and the summary over folds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score
from toy_bags import SMALL, make_bags

from wsi_dino.errors import CohortError
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.split import make_folds
from wsi_dino.mil.bags import BagStore
from wsi_dino.mil.cross_validation import FoldResult, fold_spec, run_fold, summarise
from wsi_dino.mil.targets import target_of

SPEC = SMALL.model_copy(update={"epochs": 25})


@pytest.fixture(scope="module")
def binary() -> tuple[BagStore, Cohort, list[FoldResult]]:
    store, cohort = make_bags()
    split = make_folds(cohort, 3, 0)
    return store, cohort, [run_fold(cohort, fold, store, SPEC, fold_index=i) for i, fold in enumerate(split)]


def test_every_slide_is_tested_once_and_patients_stay_apart(binary: tuple) -> None:
    _, cohort, results = binary
    tested = [row["slide_id"] for result in results for row in result.predictions if row["subset"] == "test"]
    assert sorted(tested) == sorted(cohort.slide_ids)
    for result in results:
        patients = {s: {r["patient_id"] for r in result.predictions if r["subset"] == s} for s in ("val", "test")}
        assert not patients["val"] & patients["test"]


def test_columns_and_predictions_follow_the_threshold(binary: tuple) -> None:
    _, cohort, results = binary
    columns = "fold subset patient_id slide_id target label score score_0 score_1 predicted".split()  # noqa: SIM905
    for result in results:
        for row in result.predictions:
            assert list(row) == columns
            assert row["score"] == row["score_1"] == pytest.approx(1 - row["score_0"])
            assert row["predicted"] == str(int(row["score"] >= result.threshold.value))
            assert cohort.class_names[row["label"]] == row["target"]


def test_metrics_are_those_of_the_test_rows(binary: tuple) -> None:
    for result in binary[2]:
        rows = [row for row in result.predictions if row["subset"] == "test"]
        labels = [row["label"] for row in rows]
        assert result.metrics["auc"] == pytest.approx(roc_auc_score(labels, [row["score"] for row in rows]))
        assert result.metrics["accuracy"] == accuracy_score(labels, [int(row["predicted"]) for row in rows])


def test_folds_do_not_depend_on_each_other(binary: tuple) -> None:
    store, cohort, results = binary
    alone = run_fold(cohort, make_folds(cohort, 3, 0).folds[2], store, SPEC, fold_index=2, threads=2)
    assert alone.to_record() == results[2].to_record()
    assert len({fold_spec(SPEC, i).seed for i in range(20)}) == 20


def test_record_survives_json_exactly(binary: tuple) -> None:
    for result in binary[2]:
        back = FoldResult.from_record(json.loads(json.dumps(result.to_record())))
        assert back == replace(result, model=None, objective=None)


def test_summary_is_the_mean_over_folds_with_an_interval_around_it(binary: tuple) -> None:
    _, cohort, results = binary
    summary = summarise(results, target_of(cohort), n_resamples=500)
    assert [row["fold"] for row in summary["folds"]] == [0, 1, 2]
    for name, figure in summary["summary"].items():
        values = [row[name] for row in summary["folds"]]
        assert figure["value"] == pytest.approx(np.mean(values))
        assert figure["std"] == pytest.approx(np.std(values, ddof=1))
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert summary["summary"]["auc"]["value"] > 0.9
    assert summary["threshold_policy"] == "youden-on-validation"
    assert "patients" in summary["interval"]
    records = [FoldResult.from_record(result.to_record()) for result in reversed(results)]
    assert summarise(records, target_of(cohort), n_resamples=500) == summary


def test_three_classes() -> None:
    store, cohort = make_bags(90, n_classes=3)
    split = make_folds(cohort, 2, 0)
    results = [run_fold(cohort, fold, store, SPEC, fold_index=i) for i, fold in enumerate(split)]
    summary = summarise(results, target_of(cohort), n_resamples=200)
    assert summary["threshold_policy"] == "highest-score"
    assert summary["folds"][0]["threshold"] is None
    assert summary["summary"]["auc"]["value"] > 0.8
    row = results[0].predictions[0]
    assert row["predicted"] == max("012", key=lambda name: row[f"score_{name}"])
    assert row["score"] == max(row[f"score_{name}"] for name in "012")


def test_shuffled_labels_give_an_interval_around_chance() -> None:
    store, cohort = make_bags(80)
    order = np.random.default_rng(3).permutation(len(cohort))
    rows = tuple(
        replace(row, patient_id=row.slide_id, label=cohort.rows[i].label, target=cohort.rows[i].target)
        for row, i in zip(cohort.rows, order, strict=True)
    )
    shuffled = replace(cohort, rows=rows)
    split = make_folds(shuffled, 5, 0)
    results = [run_fold(shuffled, fold, store, SPEC, fold_index=i) for i, fold in enumerate(split)]
    auc = summarise(results, target_of(cohort))["summary"]["auc"]
    assert auc["low"] < 0.5 < auc["high"]


def test_slide_without_features_is_named(binary: tuple) -> None:
    store, cohort, _ = binary
    fold = make_folds(cohort, 3, 0).folds[0]
    part = BagStore.of_arrays({slide: store.features(slide) for slide in cohort.slide_ids[1:]})
    with pytest.raises(CohortError, match=cohort.slide_ids[0]):
        run_fold(cohort, fold, part, SPEC, fold_index=0)
