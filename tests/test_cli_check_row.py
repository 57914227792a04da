"""`wsi-dino check-row` as a user types it."""

from __future__ import annotations

from pathlib import Path

from command_line import run_command

ROW = ("--accuracy", 0.951, "--precision", 0.959, "--recall", 0.938, "--positives", 49, "--negatives", 80)


def test_tells_which_average(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "check-row", *ROW)
    assert ran.code == 0
    assert "can be of: macro over classes." in ran.stdout
    assert "a share of positives of 0.480 (0.470 to 0.490 by rounding); the test set has 0.380" in ran.stdout
    answer = run_command(tmp_path, "check-row", *ROW, "--auc", 0.965, "--json").json
    assert answer["verdict"] == {"positive class": "near", "macro over classes": "fits"}


def test_impossible_figures_are_refused(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "check-row", *ROW[:3], 95.9, *ROW[4:])
    assert ran.code == 2
    assert "Traceback" not in ran.stderr
