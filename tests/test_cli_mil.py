"""`wsi-dino mil`: what it writes, what it leaves out and says, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ran, run_command
from PIL import Image
from sklearn.metrics import roc_auc_score
from toy_features import SMALL, make_run, write_features, write_labels

from wsi_dino.cli.mil import exact_command
from wsi_dino.cli.mil_models import FIELDS
from wsi_dino.mil.training import TrainingSpec
from wsi_dino.run_folder import RunFolder


def _mil(folder: Path, *more: object, report: bool = False) -> Ran:
    quick = () if report else ("--no-report",)
    return run_command(folder, "mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", *SMALL, *quick, *more)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_results_are_complete_and_agree_with_each_other(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    ran = _mil(tmp_path, "--json", report=True)
    assert ran.code == 0, ran.stderr
    results = tmp_path / "run/mil/ER/toy"
    metrics = json.loads((results / "metrics.json").read_text())
    assert list(metrics)[:2] == ["task", "encoder"]
    assert (metrics["n_slides"], metrics["n_patients"]) == (30, 30)
    assert ran.json["summary"] == metrics["summary"]

    rows = _rows(results / "predictions.csv")
    assert list(rows[0])[:6] == ["fold", "subset", "patient_id", "slide_id", "target", "label"]
    tested = [row for row in rows if row["subset"] == "test"]
    assert sorted(row["slide_id"] for row in tested) == sorted(f"S{index}" for index in range(30))
    for fold in metrics["folds"]:
        mine = [row for row in tested if int(row["fold"]) == fold["fold"]]
        expected = roc_auc_score([int(row["label"]) for row in mine], [float(row["score"]) for row in mine])
        assert fold["auc"] == pytest.approx(expected)
        assert {"accuracy", "precision", "recall", "f1"} <= set(fold)
    values = [fold["auc"] for fold in metrics["folds"]]
    assert metrics["summary"]["auc"]["value"] == pytest.approx(np.mean(values))
    assert set(metrics["summary"]["auc"]) == {"value", "low", "high", "std"}
    assert sorted(path.name for path in (results / "model").glob("*.safetensors")) == [
        f"fold-{index}.safetensors" for index in range(5)
    ]
    assert len(list(results.glob("attention/*/*.h5"))) == 30
    assert (results / "report.html").is_file()


def test_patients_never_stand_on_two_sides(tmp_path: Path) -> None:
    make_run(tmp_path, 40, slides_per_patient=2)
    assert _mil(tmp_path).code == 0
    for fold in range(5):
        rows = [row for row in _rows(tmp_path / "run/mil/ER/toy/splits.csv") if row["fold"] == str(fold)]
        assert len({row["patient_id"] for row in rows}) == len(rows) == 20


def test_splits_are_used_as_given(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    assert _mil(tmp_path, "--folds", 3, "--seed", 4).code == 0
    written = (tmp_path / "run/mil/ER/toy/splits.csv").read_text()
    (tmp_path / "mine.csv").write_text(written)
    assert _mil(tmp_path, "--splits", "mine.csv").code == 0
    assert (tmp_path / "run/mil/ER/toy/splits.csv").read_text() == written
    assert len(json.loads((tmp_path / "run/mil/ER/toy/metrics.json").read_text())["folds"]) == 3
    assert not (tmp_path / "run/mil/ER/toy/model/fold-4.safetensors").exists()


def test_task_by_name_with_numbers_for_classes(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    write_labels(tmp_path / "labels.csv", [(f"S{i}", f"P{i}", i % 2) for i in range(30)], ("slide_id", "p", "bcnb_er"))
    request = ("--run", "run", "--labels", "labels.csv", "--task", "bcnb-er")
    ran = run_command(tmp_path, "mil", *request, *SMALL, "--no-report")
    assert ran.code == 0, ran.stderr
    metrics = json.loads((tmp_path / "run/mil/bcnb-er/toy/metrics.json").read_text())
    assert metrics["classes"] == ["Negative", "Positive"]
    assert metrics["target"] == "bcnb_er"


def test_own_task_and_settings_come_from_the_project_file(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    (tmp_path / "wsi-dino.yaml").write_text(
        "labels: labels.csv\nrun: run\nmil: {epochs: 2, hidden_dim: 8, bootstrap: 100, no_report: true}\n"
        "tasks: {receptor: {target: ER, classes: [Positive, Negative]}}\n"
    )
    ran = run_command(tmp_path, "mil", "--task", "receptor", "--folds", 3)
    assert ran.code == 0, ran.stderr
    metrics = json.loads((tmp_path / "run/mil/receptor/toy/metrics.json").read_text())
    assert metrics["classes"] == ["Positive", "Negative"]
    assert metrics["protocol"]["training"]["epochs"] == 2
    assert not (tmp_path / "run/mil/receptor/toy/report.html").exists()


def test_several_encoders_are_never_guessed_but_run_when_named(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    make_run(tmp_path, 30, encoder="other")
    ran = _mil(tmp_path)
    assert ran.code == 2
    assert "other, toy" in ran.stderr
    ran = _mil(tmp_path, "--encoder", "toy", "--encoder", "other", "--json")
    assert [result["encoder"] for result in ran.json["results"]] == ["toy", "other"]
    assert (tmp_path / "run/mil/ER/other/metrics.json").is_file()


def test_slides_left_out_are_listed_with_reasons(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    rows = [(f"S{i}", f"P{i}", ["Negative", "Positive"][i % 2]) for i in range(29)]
    rows += [
        ("S29", "P29", ""),
        ("gone", "P30", "Positive"),
        ("failed", "P31", "Positive"),
        ("blank", "P32", "Negative"),
    ]
    write_labels(tmp_path / "labels.csv", rows)
    write_features(tmp_path / "run/features/toy/extra.h5", True, 99)
    run = RunFolder(tmp_path / "run")
    run.write_row(
        "tile", "failed", {"status": "failed", "reason": "/data/x/failed.svs is truncated", "path": "/data/x/f"}
    )
    run.write_row("tile", "blank", {"status": "empty", "reason": "no tissue"})
    ran = _mil(tmp_path, "--json")
    assert ran.code == 0
    reasons = {row["slide_id"]: row["reason"] for row in ran.json["exclusions"]}
    assert reasons == {
        "S29": "no value for the target", "gone": "no features", "failed": "the slide failed",
        "blank": "no tissue found", "extra": "no row in the labels",
    }  # fmt: skip
    details = {row["slide_id"]: row["detail"] for row in ran.json["exclusions"]}
    assert details["failed"] == "failed.svs is truncated"
    assert "gone" in ran.stderr


def test_broken_feature_file_is_left_out_and_ends_with_1(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    truncated = tmp_path / "run/features/toy/S3.h5"
    truncated.write_bytes(truncated.read_bytes()[:700])
    flipped = tmp_path / "run/features/toy/S4.h5"
    content = bytearray(flipped.read_bytes())
    place = content.find(np.random.default_rng(4).normal(size=(24, 8)).astype(np.float32).tobytes()[:64])
    content[place + 5] ^= 0xFF
    flipped.write_bytes(bytes(content))
    ran = _mil(tmp_path, "--json")
    assert ran.code == 1, ran.stderr
    assert {row["slide_id"] for row in ran.json["exclusions"] if row["reason"] == "broken feature file"} == {"S3", "S4"}
    assert ran.json["n_slides"] == 28
    assert str(tmp_path) not in (tmp_path / "run/mil/ER/toy/metrics.json").read_text()


def _wrong(folder: Path, complaint: str, *arguments: object) -> None:
    ran = run_command(folder, "mil", *arguments)
    assert ran.code == 2, ran.stdout + ran.stderr
    assert complaint in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--target", "HER2"], "slide_id, patient_id, ER"),
        (["--task", "bcnb-re"], "Did you mean 'bcnb-"),
        ([], "--task NAME, or --target COLUMN"),
        (["--target", "ER", "--encoder", "toyy"], "Did you mean 'toy'"),
        (["--target", "ER", "--folds", "20"], "class 'Negative' has 15 patients"),
        (["--target", "ER", "--threshold-policy", "youden-on-val"], "Did you mean"),
        (["--target", "ER", "--dropout", "1.5"], "--dropout 1.5"),
        (["--target", "ER", "--lr", "0"], "--lr 0"),
        (["--target", "ER", "--splits", "none.csv"], "none.csv"),
        (["--target", "patient_id"], "30 different values"),
    ],
)
def test_wrong_request_says_what_to_do(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    make_run(tmp_path, 30)
    _wrong(tmp_path, complaint, "--run", "run", "--labels", "labels.csv", *arguments)


def test_wrong_tables_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    request = ("--run", "run", "--target", "ER", "--labels")
    _wrong(tmp_path, "there is no such file", *request, "gone.csv")
    write_labels(tmp_path / "twice.csv", [("S1", "P1", "Positive"), ("S1", "P1", "Positive"), ("S2", "P2", "Negative")])
    _wrong(tmp_path, "S1", *request, "twice.csv")
    write_labels(tmp_path / "one.csv", [(f"S{i}", f"P{i}", "Positive") for i in range(30)])
    _wrong(tmp_path, "only one class", *request, "one.csv")
    write_labels(tmp_path / "other.csv", [(f"S{i}.svs", f"P{i}", ["neg", "pos"][i % 2]) for i in range(30)])
    _wrong(tmp_path, "file ending", *request, "other.csv")
    write_labels(tmp_path / "few.csv", [(f"S{i}", f"P{i}", ["neg", "pos"][i % 2]) for i in range(4)])
    _wrong(tmp_path, "fewer than", *request, "few.csv")


def test_mixed_or_random_features_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    write_features(tmp_path / "run/features/toy/S3.h5", True, 3, pooling="cls")
    request = ("--run", "run", "--target", "ER", "--labels", "labels.csv")
    _wrong(tmp_path, "pooling", *request)
    for index in range(30):
        changes: dict[str, Any] = {"random_weights": 0, "weights_sha256": "random:0"}
        write_features(tmp_path / f"run/features/toy/S{index}.h5", bool(index % 2), index, **changes)
    _wrong(tmp_path, "--allow-random-weights", *request)
    ran = _mil(tmp_path, "--allow-random-weights", "--json")
    assert ran.code == 0
    assert "random weights" in ran.json["warnings"][0]


def test_run_without_features_or_without_a_folder_is_refused(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", [("S1", "P1", "Positive")])
    request = ("--target", "ER", "--labels", "labels.csv", "--run")
    _wrong(tmp_path, "no such folder", *request, "run")
    (tmp_path / "run").mkdir()
    _wrong(tmp_path, "wsi-dino embed", *request, "run")


def test_heatmaps_are_drawn_where_slides_are_and_said_where_not(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    run = RunFolder(tmp_path / "run")
    for index in range(29):
        path = tmp_path / "slides" / f"S{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (336, 224), "pink").save(path)
        run.write_row("tile", f"S{index}", {"status": "done", "path": str(path)})
    ran = _mil(tmp_path, "--heatmaps", 30, "--json", report=True)
    assert ran.code == 1
    assert list(ran.json["no_heatmap"]) == ["S29"]
    assert len(list((tmp_path / "run/mil/ER/toy/heatmaps").glob("*.png"))) == 29
    assert "data:image/jpeg" in (tmp_path / "run/mil/ER/toy/report.html").read_text()


def test_command_in_the_report_repeats_the_result(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    absolute = ("--run", tmp_path / "run", "--labels", tmp_path / "labels.csv")
    assert run_command(tmp_path, "mil", *absolute, "--target", "ER", *SMALL).code == 0
    page = (tmp_path / "run/mil/ER/toy/report.html").read_text()
    assert str(tmp_path) not in page
    command = page.split("<pre>")[1].split("</pre>")[0]
    metrics = (tmp_path / "run/mil/ER/toy/metrics.json").read_bytes()
    (tmp_path / "run/mil/ER/toy/metrics.json").unlink()
    ran = run_command(tmp_path / "run", *command.split()[1:])
    assert ran.code == 0, ran.stderr
    assert (tmp_path / "run/mil/ER/toy/metrics.json").read_bytes() == metrics
    assert (tmp_path / "run/mil/ER/toy/report.html").read_text() == page


def test_exact_command_leaves_out_what_was_not_chosen() -> None:
    given = {
        "run": Path("r"),
        "labels": Path("l.csv"),
        "splits": None,
        "target": "my column",
        "lr": None,
        "no_report": True,
    }
    command, _ = exact_command(given, "uni")
    assert command == "wsi-dino mil --run . --encoder uni --labels ../l.csv --target 'my column' --no-report"


def test_help_states_the_defaults_of_the_recipe(tmp_path: Path) -> None:
    text = " ".join(run_command(tmp_path, "mil", "--help").stdout.split())
    for option, field in FIELDS.items():
        default = TrainingSpec.model_fields[field].default
        described = text.split(f"--{option.replace('_', '-')} ")[1].split("[default: ")[1].split("]")[0]
        expected = "all" if default is None else default
        assert described == expected or float(described) == expected


def test_three_classes_and_hostile_names(tmp_path: Path) -> None:
    make_run(tmp_path, 45)
    classes = ["N0", "<script>alert(1)</script>", "N+ (>2), $x$"]
    write_labels(tmp_path / "labels.csv", [(f"S{i}", f"<b>{i}</b>", classes[i % 3]) for i in range(45)])
    ran = _mil(tmp_path, "--folds", 3, "--json", report=True)
    assert ran.code == 0, ran.stderr
    assert len(ran.json["classes"]) == 3
    assert ran.json["folds"][0]["threshold"] is None
    page = (tmp_path / "run/mil/ER/toy/report.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    rows = _rows(tmp_path / "run/mil/ER/toy/predictions.csv")
    assert {row["target"] for row in rows} == set(classes)
    for row in rows:
        assert sum(float(row[f"score_{name}"]) for name in ran.json["classes"]) == pytest.approx(1)


def test_percentages_become_classes_by_the_tasks_cut(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    values = [(f"S{i}", f"P{i}", 30 + i if i % 2 else i / 4) for i in range(30)]
    write_labels(tmp_path / "labels.csv", values, ("slide_id", "patient_id", "Ki67"))
    ran = run_command(
        tmp_path, "mil", "--run", "run", "--labels", "labels.csv", "--task", "bcnb-ki67", *SMALL, "--json"
    )
    assert ran.code == 0, ran.stderr
    assert [row["slides"] for row in ran.json["cohort"]["classes"]] == [15, 15]
    assert ran.json["protocol"]["target_threshold"] == 14
    assert "Positive at 14 and above" in (tmp_path / "run/mil/bcnb-ki67/toy/report.html").read_text()
