"""The page about looking: its commands run, in order, on drawn slides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import run_command
from looking_run import MIL, RESULTS, make_looking_run

_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "looking.md").read_text(encoding="utf-8")
_NAMES = {
    "RUN/mil/TASK/ENCODER": RESULTS.as_posix(), "SLIDE": "S01", "ANNOTATIONS": "annotations", "RUN": "run",
    "LABELS.csv": "labels.csv", "COLUMN": "kind",
}  # fmt: skip
_QUICK = ("--folds", 3, "--epochs", 3, "--hidden-dim", 16, "--attention-dim", 8, "--bootstrap", 100, "--no-report")


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [[_NAMES.get(word, word) for word in shlex.split(line)[1:]] for line in lines]


@pytest.mark.slow
def test_commands_of_the_page_run(tmp_path: Path) -> None:
    make_looking_run(tmp_path, 12)
    assert run_command(tmp_path, "mil", *MIL, "--epochs", 3, "--no-report").code == 0
    commands = _commands()
    assert [command[0] for command in commands] == ["heatmap", "heatmap", "mil", "localise"]
    for command in commands:
        ran = run_command(tmp_path, *command, *(_QUICK if command[0] == "mil" else ()))
        assert ran.code == 0, (command, ran.stderr)
    written = {path.relative_to(tmp_path / RESULTS).as_posix() for path in (tmp_path / RESULTS).rglob("*")}
    assert "localisation/probability/localisation.json" in written


def test_page_names_what_the_code_does() -> None:
    from wsi_dino.evaluation.deletion_insertion import _METHOD
    from wsi_dino.evaluation.froc import EVALUATION_MPP, ITC_UM, MERGE_UM
    from wsi_dino.mil import looking

    assert round(EVALUATION_MPP, 6) == 7.776
    for figure in (f"{MERGE_UM / 2:g}", f"{ITC_UM:g}", "7.776"):
        assert figure in _PAGE
    assert f"in {looking._N_STEPS} steps" in " ".join(_PAGE.split())
    assert looking._N_RANDOM == 10
    assert "random" in _METHOD
