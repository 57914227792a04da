"""`wsi-dino mil` on survival, numbers and several labels whose truth is planted."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ran, run_command
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score
from toy_outcomes import make_outcome_run

SMALL = ("--hidden-dim", 24, "--attention-dim", 12, "--bootstrap", 200, "--lr", 0.006, "--epochs", 14, "--patience", 14)
SURVIVAL = ("--survival", "months", "died")


def _mil(folder: Path, *more: object) -> Ran:
    return run_command(folder, "mil", "--run", "run", "--labels", "labels.csv", *SMALL, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outcomes")
    make_outcome_run(folder)
    return folder


@pytest.fixture(scope="module")
def survival(folder: Path) -> dict[str, Any]:
    ran = _mil(folder, *SURVIVAL, "--json")
    assert ran.code == 0, ran.stderr
    return ran.json


def _rows(folder: Path, task: str) -> list[dict[str, str]]:
    with (folder / f"run/mil/{task}/toy/predictions.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["subset"] == "test"]


def _folds(rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    return [[row for row in rows if row["fold"] == fold] for fold in sorted({row["fold"] for row in rows})]


def _patients(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    slides: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        slides.setdefault(row["patient_id"], []).append(row)
    return {
        patient: {name: float(np.mean([float(row[name]) for row in same])) for name in ("time", "event", "risk")}
        for patient, same in slides.items()
    }


# survival -----------------------------------------------------------------------------------------
def test_planted_survival_is_found_and_its_figures_are_those_of_lifelines(
    folder: Path, survival: dict[str, Any]
) -> None:
    told = survival["survival"]
    assert told["c_index"]["value"] > 0.8
    assert told["c_index"]["low"] < told["c_index"]["value"] < told["c_index"]["high"]
    each, high = [], {}
    for rows, fold in zip(_folds(_rows(folder, "survival-months")), survival["folds"], strict=True):
        patients = _patients(rows)
        columns = [[patient[name] for patient in patients.values()] for name in ("time", "risk", "event")]
        each.append(concordance_index(columns[0], -np.array(columns[1]), columns[2]))
        assert fold["c_index"] == pytest.approx(each[-1])
        high |= {name: {**patient, "high": patient["risk"] > fold["threshold"]} for name, patient in patients.items()}
    assert told["c_index"]["value"] == pytest.approx(np.mean(each))
    time, event, is_high = (np.array([p[name] for p in high.values()]) for name in ("time", "event", "high"))
    is_high = is_high.astype(bool)
    expected = logrank_test(time[is_high], time[~is_high], event[is_high], event[~is_high])
    assert told["log_rank_p"] == pytest.approx(expected.p_value)
    assert {group["name"]: group["n"] for group in told["groups"]} == {
        "high risk": is_high.sum(), "low risk": (~is_high).sum()
    }  # fmt: skip
    assert told["log_rank_p"] < 1e-3
    assert told["n_patients"] == len(high) == 60
    assert told["calibration"]["brier"]["value"] < told["calibration"]["brier"]["of_kaplan_meier"]
    assert sum(row["n"] for row in told["calibration"]["groups"]) == 60


def test_folds_hold_events_and_censored_alike(folder: Path, survival: dict[str, Any]) -> None:
    events = [np.mean([p["event"] for p in _patients(f).values()]) for f in _folds(_rows(folder, "survival-months"))]
    assert max(events) - min(events) < 0.1
    assert len(survival["folds"]) == 5


def test_survival_has_report_and_pictures(folder: Path, survival: dict[str, Any]) -> None:
    results = Path(folder, "run/mil/survival-months/toy")
    page = (results / "report.html").read_text()
    assert "C-index" in page
    assert "Log-rank test" in page
    assert 'id="survival-' in page
    assert survival["report"].endswith("report.html")
    for name in ("survival", "calibration"):
        assert (results / f"figures/{name}.svg").read_bytes().startswith(b"<?xml")
        assert (results / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "--survival months died" in page
    stored = json.loads((results / "metrics.json").read_text())
    assert stored["survival"] == survival["survival"]
    assert stored["cohort"]["classes"][1]["name"] == "event"


def test_cox_finds_it_too(folder: Path) -> None:
    ran = _mil(folder, *SURVIVAL, "--survival-head", "cox", "--task", "cox", "--json", "--no-report", "--horizon", 20)
    assert ran.code == 0, ran.stderr
    told = ran.json["survival"]
    assert told["head"] == "cox"
    assert told["c_index"]["value"] > 0.8
    assert told["horizon"] == 20
    assert told["calibration"]["brier"]["value"] < told["calibration"]["brier"]["of_kaplan_meier"]


@pytest.mark.parametrize("head", ["discrete", "cox"])
def test_permuted_survival_is_chance(folder: Path, head: str) -> None:
    more = ("--permute-labels", 1, "--survival-head", head, "--task", head, "--no-report", "--json", "--epochs", 8)
    ran = _mil(folder, *SURVIVAL, *more)
    assert ran.code == 0, ran.stderr
    figure = ran.json["survival"]["c_index"]
    assert figure["low"] < 0.5 < figure["high"]
    assert ran.json["survival"]["log_rank_p"] > 0.01
    assert "PERMUTED" in ran.json["warnings"][0]
    assert "C-index should hold 0.5" in ran.json["warnings"][0]


def test_finished_folds_are_kept_and_a_new_horizon_is_learnt_anew(folder: Path, tmp_path: Path) -> None:
    make_outcome_run(tmp_path, 24)
    request = (*SURVIVAL, "--epochs", 4, "--no-report", "--folds", 3)
    model = tmp_path / "run/mil/survival-months/toy/model/fold-1.safetensors"
    assert _mil(tmp_path, *request).code == 0
    first = model.stat().st_mtime_ns
    assert _mil(tmp_path, *request).code == 0
    assert model.stat().st_mtime_ns == first
    assert _mil(tmp_path, *request, "--horizon", 9).code == 0
    assert model.stat().st_mtime_ns > first


def test_a_fixed_test_set_and_a_table_of_splits(folder: Path, tmp_path: Path) -> None:
    task = "tasks:\n  os:\n    kind: survival\n    time: months\n    event: died\n"
    make_outcome_run(tmp_path, 40)
    (tmp_path / "wsi-dino.yaml").write_text(
        f"slides: .\nlabels: labels.csv\nrun: run\n{task}    scheme: {{kind: fixed, column: official, seeds: 2}}\n"
    )
    ran = run_command(tmp_path, "mil", "--task", "os", *SMALL, "--epochs", 4, "--json", "--no-report")
    assert ran.code == 0, ran.stderr
    assert ran.json["survival"]["n_patients"] == 10  # each once, though two models tested them
    assert "several models" in ran.json["survival"]["cut"]
    splits = tmp_path / "run/mil/os/toy/splits.csv"
    splits.rename(tmp_path / "own.csv")
    ran = _mil(tmp_path, *SURVIVAL, "--splits", "own.csv", "--epochs", 4, "--json", "--no-report")
    assert ran.code == 0, ran.stderr
    assert len(ran.json["folds"]) == 2


@pytest.mark.slow
def test_broken_off_and_repeated_gives_the_same_bytes(tmp_path: Path) -> None:
    """Folds, pictures and report: whatever was finished when it ended."""
    for name in ("calm", "broken"):
        make_outcome_run(tmp_path / name, 20)
        assert _mil(tmp_path / name, *SURVIVAL, "--epochs", 2, "--folds", 2).code == 0
    results = tmp_path / "broken/run/mil/survival-months/toy"
    for gone in ("model/fold-1.safetensors", "metrics.json", "figures/survival.png"):
        (results / gone).unlink()
    assert _mil(tmp_path / "broken", *SURVIVAL, "--epochs", 2, "--folds", 2).code == 0
    calm, broken = (
        {p.relative_to(root).as_posix(): p.read_bytes() for p in (root / "run/mil").rglob("*") if p.is_file()}
        for root in (tmp_path / "calm", tmp_path / "broken")
    )
    assert calm == broken
    assert "run/mil/survival-months/toy/figures/survival.png" in calm


# numbers ------------------------------------------------------------------------------------------
def test_planted_numbers_are_found_in_their_unit(folder: Path) -> None:
    ran = _mil(folder, "--target", "score", "--regression", "--json")
    assert ran.code == 0, ran.stderr
    folds = []
    for rows in _folds(_rows(folder, "score")):
        truth, said = (np.array([float(row[name]) for row in rows]) for name in ("value", "predicted"))
        figures = (mean_absolute_error(truth, said), r2_score(truth, said), stats.spearmanr(truth, said)[0])
        folds.append(figures)
    found = [ran.json["regression"][name]["value"] for name in ("mae", "r2", "spearman")]
    assert found == pytest.approx(np.mean(folds, axis=0))
    assert ran.json["regression"]["r2"]["low"] > 0.5
    assert set(ran.json["regression"]) == {"mae", "rmse", "r2", "pearson", "spearman"}
    page = (folder / "run/mil/score/toy/report.html").read_text()
    assert "Predicted and true values" in page
    assert (folder / "run/mil/score/toy/figures/scatter.png").is_file()


def test_permuted_numbers_are_chance(folder: Path) -> None:
    more = ("--permute-labels", 0, "--no-report", "--json", "--epochs", 8)
    ran = _mil(folder, "--target", "score", "--regression", *more)
    assert ran.json["regression"]["spearman"]["low"] < 0 < ran.json["regression"]["spearman"]["high"]
    assert ran.json["regression"]["r2"]["high"] < 0.3


# several labels -----------------------------------------------------------------------------------
def test_several_labels_by_one_model_with_some_missing(folder: Path) -> None:
    ran = _mil(folder, "--target", "grade3", "--target", "ER", "--json", "--no-report")
    assert ran.code == 0, ran.stderr
    rows = _rows(folder, "grade3+ER")
    assert len(rows) == 80
    each = {row["name"]: row for row in ran.json["labels"]}
    assert each["grade3"]["n_known"] == sum(row["grade3"] != "" for row in rows) < 80
    for name, positive in (("grade3", "1"), ("ER", "Positive")):
        assert each[name]["positive"] == positive
        aucs = []
        for fold in _folds(rows):
            known = [row for row in fold if row[name] != ""]
            aucs.append(roc_auc_score([int(row[name]) for row in known], [float(r[f"score_{name}"]) for r in known]))
        assert each[name]["auc"]["value"] == pytest.approx(np.mean(aucs))
        assert each[name]["auc"]["value"] > 0.85
        said = {row[f"predicted_{name}"] for row in rows}
        assert positive in said
    macro = np.mean([row["auc"]["value"] for row in each.values()])
    assert ran.json["summary"]["auc"]["value"] == pytest.approx(macro)
    assert len(list((folder / "run/mil/grade3+ER/toy/model").glob("*.safetensors"))) == 5


# all of them --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "column"),
    [(SURVIVAL, "risk"), (("--target", "score", "--regression"), "predicted"),
     (("--target", "grade3", "--target", "ER"), "score_grade3")],
)  # fmt: skip
def test_predict_says_what_the_models_say(tmp_path: Path, options: tuple[str, ...], column: str) -> None:
    make_outcome_run(tmp_path, 24)
    ran = _mil(tmp_path, *options, "--epochs", 4, "--folds", 3, "--json", "--no-report")
    assert ran.code == 0, ran.stderr
    said = run_command(tmp_path, "predict", "--model", ran.json["folder"], "--run", "run", "--json")
    assert said.code == 0, said.stderr
    assert {row["slide_id"]: row["status"] for row in said.json["rows"]} == dict.fromkeys(
        (row["slide_id"] for row in said.json["rows"]), "done"
    )
    held_out = {row["slide_id"]: row for row in _rows(tmp_path, ran.json["task"])}
    assert len(held_out) == len(said.json["rows"]) == 32
    for row in said.json["rows"]:
        test = held_out[row["slide_id"]]
        assert row[f"fold_{test['fold']}"] == pytest.approx(float(test[column]), rel=1e-5, abs=1e-6)
        assert row[column] == pytest.approx(np.mean([row[f"fold_{fold}"] for fold in range(3)]))
    text = run_command(tmp_path, "predict", "--model", ran.json["folder"], "--run", "run")
    assert column in text.stdout


def test_compare_refuses_what_it_has_no_test_for(folder: Path, survival: dict[str, Any], tmp_path: Path) -> None:
    other = folder / "run/mil/survival-months/other"
    other.mkdir(exist_ok=True)
    (other / "metrics.json").write_text((folder / "run/mil/survival-months/toy/metrics.json").read_text())
    ran = run_command(folder, "compare", "--run", "run", "--task", "survival-months")
    assert ran.code == 2
    assert "kind survival" in ran.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((*SURVIVAL, "--target", "ER"), "leave out --target"),
        (("--survival", "months", "dead"), "no column 'dead'"),
        (("--survival", "died", "months"), "expected a positive number, got 'yes'"),
        (("--target", "ER", "--regression"), "finite number"),
        (("--target", "ER", "--survival-head", "cox"), "belongs to kind survival"),
        ((*SURVIVAL, "--horizon", "1000"), "nobody was watched longer"),
        (("--target", "score", "--target", "ER"), "continuous"),
        (("--regression",), "--target"),
        (("--target", "slide_id", "--target", "ER"), "cannot be called 'slide_id'"),
        ((*SURVIVAL, "--model", "clam-sb"), "learns one class a slide"),
        ((*SURVIVAL, "--adapt", "lora", "--encoder", "efficientnet-lite0"), "teaches classes alone"),
        ((*SURVIVAL, "--folds", "55"), "the event was seen in"),
    ],
)
def test_wrong_requests_say_what_is_wrong(folder: Path, options: tuple[str, ...], said: str) -> None:
    ran = _mil(folder, *options)
    assert ran.code == 2
    assert said in ran.stderr
    assert len(ran.stderr.strip().splitlines()[-1]) < 600


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (("0", "yes"), "positive number, got '0' (line 3)"),
        (("inf", "yes"), "positive number"),
        (("3", "dead"), "0, 1, true, false, yes or no, got 'dead' (line 3)"),
        (("3", "yes"), "patient P0 has one months"),
    ],
)
def test_wrong_cells_are_named(tmp_path: Path, cells: tuple[str, str], said: str) -> None:
    make_outcome_run(tmp_path, 12)
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    parts = lines[2].split(",")
    lines[2] = ",".join([*parts[:2], *cells, *parts[4:]])
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    ran = _mil(tmp_path, *SURVIVAL)
    assert ran.code == 2
    assert said in ran.stderr


def test_slides_without_an_outcome_are_left_out_and_named(tmp_path: Path) -> None:
    make_outcome_run(tmp_path, 24)
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    lines[3] = ",".join([*lines[3].split(",")[:2], "", *lines[3].split(",")[3:]])
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    ran = _mil(tmp_path, *SURVIVAL, "--epochs", 2, "--folds", 3, "--json", "--no-report")
    assert ran.code == 0, ran.stderr
    assert [row["slide_id"] for row in ran.json["exclusions"]] == [lines[3].split(",")[0]]
    assert math.isfinite(ran.json["survival"]["horizon"])
