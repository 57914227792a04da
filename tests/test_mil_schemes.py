"""Tasks that name their scheme: a fixed split, another cohort to test on, several tasks at once, centres, leaks."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ran, run_command
from PIL import Image
from sklearn.metrics import roc_auc_score
from toy_features import SMALL, make_run, write_features, write_labels

_HEADER = ("slide_id", "patient_id", "centre", "official", "attrimil", "tumor", "note")


def _cohort(folder: Path, run: str, prefix: str, n: int, **columns: list[str]) -> None:
    rows = []
    for index in range(n):
        slide, is_tumor = f"{prefix}{index}", bool(index % 2)
        write_features(folder / run / "features/toy" / f"{slide}.h5", is_tumor, zlib.crc32(slide.encode()))
        values = {name: given[index % len(given)] for name, given in columns.items()}
        rows.append([slide, slide, *(values.get(name, "") for name in _HEADER[2:5])])
        rows[-1] += ["tumor" if is_tumor else "normal", values.get("note", "")]
    write_labels(folder / f"{prefix}.csv", rows, _HEADER)


def _mil(folder: Path, *more: object) -> Ran:
    return run_command(folder, "mil", "--run", "run", *SMALL, *more)


def _metrics(folder: Path, task: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"run/mil/{task}/toy/metrics.json").read_text()))


def _predictions(folder: Path, task: str) -> list[dict[str, str]]:
    lines = (folder / f"run/mil/{task}/toy/predictions.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


def test_official_split_trains_several_seeds_and_tests_the_same_slides(tmp_path: Path) -> None:
    _cohort(tmp_path, "run", "A", 60, official=["train", "train", "test", "test"], note=["slide = patient"])
    ran = _mil(tmp_path, "--labels", "A.csv", "--task", "camelyon16-official", "--seeds", 3, "--json")
    assert ran.code == 0, ran.stderr
    metrics = _metrics(tmp_path, "camelyon16-official")
    assert metrics["scheme"]["kind"] == "fixed"
    assert [(fold["n_train"] + fold["n_val"], fold["n_test"]) for fold in metrics["folds"]] == [(30, 30)] * 3
    tested = [row for row in _predictions(tmp_path, "camelyon16-official") if row["subset"] == "test"]
    assert {int(row["slide_id"][1:]) % 4 for row in tested} == {2, 3}
    assert len(tested) == 90
    assert metrics["notes"] == ["slide = patient"]
    page = (tmp_path / "run/mil/camelyon16-official/toy/report.html").read_text()
    assert "slide = patient" in page
    assert "3 models, all tested on the same slides" in page
    again = _mil(tmp_path, "--labels", "A.csv", "--task", "camelyon16-official", "--seeds", 3, "--json")
    assert again.json["summary"] == ran.json["summary"]


def test_cross_validation_within_the_test_part(tmp_path: Path) -> None:
    _cohort(tmp_path, "run", "A", 60, official=["train", "train", "test", "test"])
    ran = _mil(tmp_path, "--labels", "A.csv", "--task", "camelyon16-cv", "--folds", 3, "--no-report", "--json")
    assert ran.code == 0, ran.stderr
    assert (ran.json["n_slides"], len(ran.json["folds"]), ran.json["scheme"]["kind"]) == (30, 3, "k-fold")
    assert ran.json["exclusions"] == []  # the training part is not asked for: nothing was lost


@pytest.mark.parametrize("separate", [True, False])
def test_other_cohort_is_tested_from_its_own_run_or_the_same(tmp_path: Path, separate: bool) -> None:
    _cohort(tmp_path, "run", "A", 40, official=["train", "train", "train", "test"])
    _cohort(tmp_path, "other" if separate else "run", "B", 40, attrimil=["unseen", "unseen", "seen"], centre=["0", "1"])
    places: tuple[object, ...] = ("--test-labels", "B.csv", *(("--test-run", "other") if separate else ()))
    ran = _mil(tmp_path, "--labels", "A.csv", *places, "--task", "camelyon17-unseen", "--seeds", 2, "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["scheme"]["kind"] == "external"
    rows = _predictions(tmp_path, "camelyon17-unseen")
    tested = {row["slide_id"] for row in rows if row["subset"] == "test"}
    assert tested == {f"B{i}" for i in range(40) if i % 3 < 2}
    assert {row["slide_id"][0] for row in rows if row["subset"] == "val"} == {"A"}
    assert [row["centre"] for row in ran.json["centres"]["rows"]] == ["0", "1"]
    page = (tmp_path / "run/mil/camelyon17-unseen/toy/report.html").read_text()
    assert str(tmp_path) not in page
    assert ("--test-run" in page) == separate


def test_patient_of_both_cohorts_is_refused(tmp_path: Path) -> None:
    _cohort(tmp_path, "run", "A", 40, official=["train"], attrimil=["unseen"])
    ran = _mil(tmp_path, "--labels", "A.csv", "--task", "camelyon17-unseen")
    assert ran.code == 2
    assert "40 slides stand in both" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--task", "camelyon16-official", "--target", "ER"), "no column 'official'"),
        (("--task", "bcnb-er", "--test-run", "run"), "not tested on another cohort"),
        (("--task", "all-bncb"), "Did you mean 'all-bcnb'"),
    ],
)
def test_wrong_request_says_what_to_do(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    make_run(tmp_path, 12)
    ran = _mil(tmp_path, "--labels", "labels.csv", *arguments)
    assert ran.code == 2
    assert complaint in ran.stderr


def test_cohorts_of_other_classes_and_remarks_on_single_slides(tmp_path: Path) -> None:
    _cohort(tmp_path, "run", "A", 20, official=["train"], note=[f"remark {i}" for i in range(20)])
    _cohort(tmp_path, "run", "B", 20, attrimil=["unseen"])
    text = (tmp_path / "B.csv").read_text()
    (tmp_path / "B.csv").write_text(text.replace("normal", "benign"))
    scheme = (
        "{kind: external, keep: {official: [train]}, test_keep: {attrimil: [unseen]}, test_labels: B.csv, seeds: 1}"
    )
    (tmp_path / "wsi-dino.yaml").write_text(f"tasks: {{mine: {{target: tumor, scheme: {scheme}}}}}\n")
    ran = _mil(tmp_path, "--labels", "A.csv", "--task", "mine", "--no-report", "--json")
    assert ran.code == 2
    assert "its classes of 'tumor' are benign, tumor" in ran.stderr
    (tmp_path / "B.csv").write_text(text)
    ran = _mil(tmp_path, "--labels", "A.csv", "--task", "mine", "--no-report", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["notes"] == ["The column note of the label table holds 20 different texts; they are not repeated."]


def test_option_of_another_scheme_is_told(tmp_path: Path) -> None:
    _cohort(tmp_path, "run", "A", 60, official=["train", "train", "test", "test"])
    request = ("--labels", "A.csv", "--task", "camelyon16-cv", "--seeds", 2, "--folds", 3, "--no-report")
    assert "--seeds is not used" in _mil(tmp_path, *request).stderr


def test_all_tasks_of_a_group_and_encoders_end_in_one_table(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    make_run(tmp_path, 30, encoder="other")
    header = ("slide_id", "patient_id", "ER", "PR", "HER2", "Ki67", "ALN status")
    signs = ["Negative", "Positive"]
    rows = [(f"S{i}", f"P{i}", *[signs[i % 2]] * 3, 5 + 50 * (i % 2), ["N0", "N+(>2)"][i % 2]) for i in range(30)]
    write_labels(tmp_path / "labels.csv", rows, header)
    request = ("--labels", "labels.csv", "--task", "all-bcnb", "--folds", 2, "--encoder", "toy", "--encoder", "other")
    ran = _mil(tmp_path, *request, "--epochs", 2, "--no-report")
    assert ran.code == 0, ran.stderr
    table = ran.stdout.split("\nAUC ")[-1].splitlines()
    assert table[0].split() == ["toy", "other"]
    assert [line.split()[0] for line in table[2:7]] == ["bcnb-aln", "bcnb-er", "bcnb-her2", "bcnb-ki67", "bcnb-pr"]
    assert (tmp_path / "run/mil/bcnb-ki67/other/metrics.json").is_file()


def test_centres_have_their_own_rows_and_a_probe(tmp_path: Path) -> None:
    rows = []
    for index in range(40):
        centre = index // 20
        path = tmp_path / "run/features/toy" / f"S{index}.h5"
        write_features(path, bool(index % 2), index)
        rows.append((f"S{index}", f"P{index}", str(centre), "pos" if index % 2 else "neg"))
    write_labels(tmp_path / "labels.csv", rows, ("slide_id", "patient_id", "centre", "ER"))
    ran = _mil(tmp_path, "--labels", "labels.csv", "--target", "ER", "--folds", 2, "--json")
    assert ran.code == 0, ran.stderr
    centres = ran.json["centres"]
    tested = [row for row in _predictions(tmp_path, "ER") if row["subset"] == "test"]
    for row in centres["rows"]:
        mine = [p for p in tested if int(p["slide_id"][1:]) // 20 == int(row["centre"])]
        truth = np.array([int(p["label"]) for p in mine])
        assert (row["n_slides"], row["n_positive"]) == (20, 10)
        assert row["auc"]["value"] == pytest.approx(roc_auc_score(truth, [float(p["score"]) for p in mine]))
        said = np.array([p["predicted"] == "pos" for p in mine])
        assert row["accuracy"] == pytest.approx(np.mean(said == truth))
        assert row["recall"] == pytest.approx(np.mean(said[truth == 1]))
    assert centres["auc_of_centre_alone"] == pytest.approx(0.5, abs=0.01)
    assert not centres["probe"]["tells"]
    assert "By centre" in (tmp_path / "run/mil/ER/toy/report.html").read_text()


def test_leaks_are_told_at_the_start_in_the_report_and_at_the_end(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    write_features(tmp_path / "run/features/toy/S4.h5", False, 2)  # S2 once more, another patient
    ran = _mil(tmp_path, "--labels", "labels.csv", "--target", "ER", "--folds", 3)
    assert ran.code == 0
    told = "1 pair of slides of different patients have identical features: S2 and S4."
    assert f"leak check: {told}" in ran.stderr
    assert f"note: {told}" in ran.stdout
    assert told in (tmp_path / "run/mil/ER/toy/report.html").read_text()
    (leak,) = _metrics(tmp_path, "ER")["leaks"]
    assert (leak["kind"], leak["slides"]) == ("identical features", [["S2", "S4"]])


def test_slides_that_look_the_same_are_told_with_the_folds_they_spoil(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    thumbnails = tmp_path / "run/thumbnails"
    thumbnails.mkdir()
    for index, seed in ((7, 0), (8, 1), (9, 0)):
        noise = np.random.default_rng(seed).integers(0, 255, (8, 8)).astype(np.uint8)
        Image.fromarray(np.kron(noise, np.ones((20, 20), np.uint8))).save(thumbnails / f"S{index}.jpg")
    splits = [(fold, f"P{i}", ["train", "val", "test"][(i // 2 + fold) % 3]) for fold in range(2) for i in range(30)]
    write_labels(tmp_path / "splits.csv", splits, ("fold", "patient_id", "subset"))
    ran = _mil(tmp_path, "--labels", "labels.csv", "--target", "ER", "--splits", "splits.csv", "--no-report", "--json")
    assert ran.code == 0, ran.stderr
    (leak,) = ran.json["leaks"]
    assert (leak["kind"], leak["slides"], leak["is_grave"]) == ("near-duplicate pictures", [["S7", "S9"]], True)
    # P7 and P9 stand in train and val, then in val and test
    assert "In 1 of 2 folds" in leak["text"]
    assert ran.json["warnings"][0] == leak["text"]
