"""`wsi-dino paper verify` as a user types it."""

from __future__ import annotations

import shutil
from pathlib import Path

from command_line import run_command

from wsi_dino.evaluation.published.printed_table import FOLDER


def _copy(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def test_shipped_tables_are_as_known(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "paper", "verify")
    assert ran.code == 0
    assert ran.stdout.splitlines()[-1] == "As known: 90 findings of 21 known inconsistencies, and no other."
    assert "[1]   Table 7, DINOv3-B, average_dice: 71.3 -> 73.65" in ran.stdout
    assert "[8]   Table 8, PEA, cremi_a_voi_sum: 0.626 -> 0.627 (rounding explains it)" in ran.stdout
    assert '"DINOv3-L achieves the best Dice scores on a few tasks (e.g., Lung, and Spleen)"' in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 100
    assert ran.stderr == ""


def test_json_says_all_of_it(tmp_path: Path) -> None:
    answer = run_command(tmp_path, "paper", "verify", "--json").json
    assert answer["as_known"] is True
    assert (answer["new"], answer["gone"]) == ([], [])
    checks = {check["check"]: check for check in answer["checks"]}
    assert (checks["voi-sum"]["holds"], checks["voi-sum"]["rounding"], checks["voi-sum"]["differs"]) == (38, 5, 2)
    [outcome] = [o for o in checks["voi-sum"]["outcomes"] if (o["row"], o["column"]) == ("DINOv3-S", "ac34_voi_sum")]
    assert (outcome["printed"], outcome["recomputed"], outcome["anomaly"]) == ("8.965", "9.065", 8)
    assert len(answer["anomalies"]) == 34


def test_a_new_error_ends_with_1(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    table = folder / "table_07.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("81.4", "84.1"), encoding="utf-8")
    ran = run_command(tmp_path, "paper", "verify", "--tables", "mine")
    assert ran.code == 1
    assert "[NEW] Table 7, nnU-Net, average_dice: 84.1 -> 81.37" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "NOT as known: 1 new, 0 gone, 90 as in the list."


def test_a_known_one_that_is_gone_ends_with_1(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    table = folder / "table_07.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("71.3", "73.7"), encoding="utf-8")
    ran = run_command(tmp_path, "paper", "verify", "--tables", folder)
    assert ran.code == 1
    assert "[1]   msd-average: Table 7, DINOv3-B, average_dice: 71.3 -> 73.65" in ran.stdout
    answer = run_command(tmp_path, "paper", "verify", "--tables", folder, "--json")
    assert answer.code == 1
    assert [finding["anomaly"] for finding in answer.json["gone"]] == [1]


def test_wrong_folders_end_with_2(tmp_path: Path) -> None:
    for folder in ("absent", "."):
        ran = run_command(tmp_path, "paper", "verify", "--tables", folder)
        assert ran.code == 2
        assert "Traceback" not in ran.stderr
        assert len(ran.stderr.splitlines()) <= 3
    assert run_command(tmp_path, "paper", "verify", "--tables", ".", "--json").json["exit_code"] == 2


def test_help_explains_the_exit_code(tmp_path: Path) -> None:
    page = run_command(tmp_path, "paper", "verify", "--help").stdout
    assert page.startswith("Usage: wsi-dino paper verify")
    assert "Exit code 0 when exactly the known inconsistencies are found" in page
    assert "verify" in run_command(tmp_path, "paper", "--help").stdout
