"""`wsi-dino compare` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run_command
from toy_features import SMALL, make_run
from toy_results import write_result

QUICK = ("--bootstrap", 100, "--permutations", 99)


def _compare(folder: Path, *arguments: object):  # type: ignore[no-untyped-def]
    return run_command(folder, "compare", "--run", "run", *arguments, *QUICK)


def test_one_task_is_printed_and_written(tmp_path: Path) -> None:
    for name, quality in (("good", 3.0), ("poor", 0.1)):
        write_result(tmp_path / "run", "er", name, quality=quality)
    ran = _compare(tmp_path, "--task", "er")
    assert ran.code == 0, ran.stderr
    assert "good has the highest AUC." in ran.stdout
    assert "p DeLong" in ran.stdout
    folder = tmp_path / "run/mil/er/comparison"
    names = {"comparison.json", "comparison.csv", "report.html", "bars.svg", "bars.png"}
    assert {path.name for path in folder.iterdir()} == names
    again = _compare(tmp_path, "--json")  # the only task need not be named
    assert again.json["tasks"] == json.loads((folder / "comparison.json").read_text())["tasks"]
    assert again.json["report"].endswith("report.html")


def test_group_of_tasks_has_a_radar_and_says_what_is_missing(tmp_path: Path) -> None:
    for task in ("bcnb-er", "bcnb-pr", "bcnb-her2"):
        for name in ("a", "b"):
            write_result(tmp_path / "run", task, name)
    ran = _compare(tmp_path, "--task", "all-bcnb", "--encoder", "b", "--encoder", "a", "--json")
    assert ran.code == 0, ran.stderr
    assert "without bcnb-aln, bcnb-ki67" in ran.stderr
    assert [section["task"] for section in ran.json["tasks"]] == ["bcnb-er", "bcnb-her2", "bcnb-pr"]
    assert [encoder["encoder"] for encoder in ran.json["tasks"][0]["encoders"]] == ["b", "a"]
    assert (tmp_path / "run/mil/all-bcnb/comparison/radar.png").is_file()
    named = _compare(tmp_path, "--task", "bcnb-er", "--task", "bcnb-pr")
    assert named.code == 0
    assert (tmp_path / "run/mil/bcnb-er+bcnb-pr/comparison/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--task", "err"], "Did you mean 'er'?"),
        (["--task", "er", "--encoder", "goood"], "Did you mean 'good'?"),
        (["--task", "lone"], "it takes two encoders, there is good alone"),
        ([], "Tasks there are: er, lone, moved"),
        (["--task", "moved"], "their folds differ"),
        (["--task", "all-bcnb"], "no such task has results"),
    ],
)
def test_wrong_request_says_what_to_do(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    for name in ("good", "poor"):
        write_result(tmp_path / "run", "er", name)
        write_result(tmp_path / "run", "moved", name, fold_seed=int(name == "poor"))
    write_result(tmp_path / "run", "lone", "good")
    ran = _compare(tmp_path, *arguments)
    assert ran.code == 2
    assert complaint in ran.stderr
    assert "Traceback" not in ran.stderr


def test_compares_what_mil_wrote_and_doctor_passes_over_it(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    make_run(tmp_path, 30, encoder="other")
    request = ("--run", "run", "--labels", "labels.csv", "--target", "ER", *SMALL, "--folds", 3)
    ran = run_command(tmp_path, "mil", *request, "--encoder", "toy", "--encoder", "other")
    assert ran.code == 0, ran.stderr
    pointer = ran.stdout.split("charts: wsi-dino ")[1].splitlines()[0]
    compared = run_command(tmp_path, *pointer.split(), *QUICK, "--json")
    assert compared.code == 0, compared.stderr
    [section] = compared.json["tasks"]
    for encoder in section["encoders"]:
        metrics = json.loads((tmp_path / f"run/mil/ER/{encoder['encoder']}/metrics.json").read_text())
        assert encoder["figures"]["auc"]["value"] == pytest.approx(metrics["summary"]["auc"]["value"])
        assert encoder["fingerprint"] == metrics["provenance"]["fingerprint"]
        assert encoder["delong"]["standard_error"] == pytest.approx(metrics["delong"]["auc"]["standard_error"])
    checked = run_command(tmp_path, "doctor", "run")
    assert "2 metric files" in checked.stdout
    assert "comparison" not in checked.stdout  # it is no encoder that lacks its models
