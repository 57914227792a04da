"""docs/scale.md: its commands run, its settings are read, its figures are those of simulation and arithmetic."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import run_command
from PIL import Image

from wsi_dino.cli.launchers.registry import LauncherName, _module, read_settings
from wsi_dino.cli.project_file import ProjectFile

_ROOT = Path(__file__).resolve().parent.parent
_PAGE = (_ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", _PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "slides").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 18, (460, 690, 3))
        pixels = np.clip(np.array([190, 110, 170]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "slides" / f"S{number}.png")
    (folder / "wsi-dino.yaml").write_text("tile: {mpp: native, a_t: 0.2}\n")
    return folder


@pytest.mark.slow
def test_commands_of_the_page_run_in_order(folder: Path) -> None:
    for line in "".join(_blocks("sh")).splitlines():
        ran = run_command(folder, *shlex.split(line)[1:])
        assert ran.code == 0, line + ran.stderr
    assert not (folder / "planned").exists()
    (script,) = _blocks("bash")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1",
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "shard 1/1+ is done: 2 done" in done.stdout


def test_settings_of_the_page_are_those_there_are() -> None:
    (block,) = _blocks("yaml")
    project = ProjectFile.model_validate(yaml.safe_load(block))
    for name, given in project.launchers.items():
        read_settings(LauncherName(name), given)
    for name in LauncherName:
        row = next(line for line in _PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        told = set(re.findall(r"`([a-z_]+)`", row.split("|")[3]))
        assert told == set(type(read_settings(name, {})).model_fields)
    assert _module("local")


def test_arithmetic_of_the_page() -> None:
    tiles = 100_000 * 10_000
    for dim, half, whole in ((384, "0.77", "1.54"), (1024, "2.05", "4.10")):
        assert f"{tiles * dim * 2 / 1e12:.2f}" == half
        assert f"{tiles * dim * 4 / 1e12:.2f}" == whole
        assert f"{half} TB" in _PAGE
        assert f"{whole} TB" in _PAGE
    assert [f"{tiles / rate / 3600:.3g}" for rate in (14.0, 1.36)] == ["1.98e+04", "2.04e+05"]
    assert round(tiles / 1000 / 3600) == 278
    assert round(tiles / 300 / 86400) == 39
    assert round(tiles / 2000 / 86400) == 6


def test_simulation_gives_what_the_page_says() -> None:
    done = subprocess.run(
        [sys.executable, _ROOT / "benchmarks" / "scale.py", "--workers", "300", "--images-per-s", "300"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1].split()[2] == "0.989"
    assert "| 300 tiles/s a worker; the same server | 0.996 | 0.989 |" in _PAGE


def test_one_worker_that_never_fails_loses_only_its_start() -> None:
    sys.path.insert(0, str(_ROOT / "benchmarks"))
    try:
        from scale import World, simulate
    finally:
        sys.path.pop(0)
    world = World(100, 1000, 0.0, 100.0, 0.0, 1e9, 1.0, 0.0, 50.0, 1e12, 0.0, 120.0)
    alone, ten = simulate(world, 1), simulate(world, 10)
    assert alone["hours"] * 3600 == pytest.approx(50 + 1000, abs=1e-3)
    assert ten["hours"] * 3600 == pytest.approx(50 + 100, abs=1e-3)
    assert ten["lost"] == 0
