"""The program's frame: exit codes, one JSON object, no traceback, quick help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_command

from wsi_dino import __version__
from wsi_dino.cli.verbs import VERBS


def test_version(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "--version")
    assert (ran.code, ran.stdout) == (0, f"wsi-dino {__version__}\n")


def test_module_can_be_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wsi_dino.cli", "--version"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.startswith("wsi-d")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str, tmp_path: Path) -> None:
    ran = run_command(tmp_path, verb, "--help")
    assert ran.code == 0
    assert "Usage: wsi-dino" in ran.stdout
    assert "--json" in ran.stdout


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_works_beside_a_broken_project_file(verb: str, tmp_path: Path) -> None:
    (tmp_path / "wsi-dino.yaml").write_text("slides: [")
    assert run_command(tmp_path, verb, "--help").code == 0


def test_no_verb_shows_help_and_unknown_verb_is_wrong_usage(tmp_path: Path) -> None:
    assert "tile" in run_command(tmp_path).stdout + run_command(tmp_path).stderr
    ran = run_command(tmp_path, "tyle")
    assert ran.code == 2
    assert "No such command" in ran.stderr


def test_unknown_option_is_wrong_usage(tmp_path: Path) -> None:
    assert run_command(tmp_path, "tile", "--mmp", "0.5").code == 2


def test_wrong_input_with_json_is_one_object_and_code_2(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "tile", "nowhere", "--run", "run", "--json")
    assert ran.code == 2
    assert ran.json["exit_code"] == 2
    assert "nowhere" in ran.json["error"]["message"]
    assert "Traceback" not in ran.stderr


def test_full_disk_under_a_command_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "run" / "tiles.csv"))

    monkeypatch.setattr("wsi_dino.pathology.discovery.discover_slides", full)
    ran = run_command(tmp_path, "tile", ".", "--run", "run")
    assert ran.code == 2
    assert "the disk is full" in ran.stderr


def test_interrupt_says_that_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_dino.pathology.discovery.discover_slides", interrupted)
    ran = run_command(tmp_path, "tile", ".", "--run", "run")
    assert ran.code == 130
    assert "Traceback" not in ran.stderr
