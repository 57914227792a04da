"""docs/targets.md: its commands and its tasks run, and it names the keys and files that come of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from command_line import run_command
from toy_outcomes import make_outcome_run

from wsi_dino.mil.tasks import make_task

_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "targets.md").read_text(encoding="utf-8")
_QUICK = ("--hidden-dim", 8, "--attention-dim", 4, "--epochs", 2, "--bootstrap", 100, "--folds", 3)


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_outcome_run(folder, 30)
    return folder


def _keys(text: str) -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", text))


def _said(start: str) -> set[str]:
    """Names that stand in the sentence about metrics.json after `start`."""
    part = _PAGE[_PAGE.index(start) :]
    return _keys(part[part.index("`metrics.json` has") : part.index("`predictions.csv` has")])


@pytest.mark.parametrize("words", _commands(), ids=lambda words: " ".join(words[5:]))
def test_commands_run_and_leave_what_is_said(folder: Path, words: list[str]) -> None:
    ran = run_command(folder, *words, *_QUICK, "--json")
    assert ran.code == 0, ran.stderr
    results = Path(folder, ran.json["folder"])
    kind = ran.json["kind"]
    drawn = {"survival": {"survival", "calibration"}, "regression": {"scatter"}, "labels": {"labels"}}[kind]
    assert {path.stem for path in (results / "figures").iterdir()} == drawn
    assert all(f"`{name}`" in _PAGE for name in drawn)
    header = (results / "predictions.csv").read_text().partition("\n")[0].split(",")
    own = [name for name in header[5:] if not re.search("grade3|ER", name)]
    assert all(f"`{name}`" in _PAGE for name in own)
    if kind == "survival":
        assert set(ran.json["survival"]) <= _said("With permuted labels")


def test_tasks_of_the_page_run(folder: Path) -> None:
    text = re.findall(r"```yaml\n(.*?)```", _PAGE, re.DOTALL)[0]
    (folder / "wsi-dino.yaml").write_text(f"slides: .\nlabels: labels.csv\nrun: run\n{text}")
    tasks = yaml.safe_load(text)["tasks"]
    kinds = {name: make_task(name, content).kind for name, content in tasks.items()}
    assert kinds == {"overall-survival": "survival", "score": "regression", "receptors": "labels"}
    for name in tasks:
        ran = run_command(folder, "mil", "--task", name, *_QUICK, "--no-report", "--json")
        assert ran.code == 0, ran.stderr
        assert ran.json["kind"] == kinds[name]
    (folder / "wsi-dino.yaml").unlink()
