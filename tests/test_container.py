"""The container recipe says what pyproject.toml says; it is read here, since no engine is at hand to build it."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_RECIPE = re.sub(r"\\\n\s*", " ", (_ROOT / "Dockerfile").read_text(encoding="utf-8"))
_LINES = [line for line in _RECIPE.splitlines() if line and not line.startswith("#")]


def _words(instruction: str) -> list[str]:
    return [line.partition(" ")[2].strip() for line in _LINES if line.startswith(f"{instruction} ")]


def _stage(name: str) -> list[str]:
    start = next(i for i, line in enumerate(_LINES) if re.fullmatch(rf"FROM \S+ AS {name}", line))
    stop = next((i for i in range(start + 1, len(_LINES)) if _LINES[i].startswith("FROM ")), len(_LINES))
    return _LINES[start:stop]


def test_python_is_one_that_the_project_takes() -> None:
    least = re.fullmatch(r">=(\d+)\.(\d+)", _PROJECT["project"]["requires-python"])
    version = re.fullmatch(r"PYTHON=(\d+)\.(\d+)", _words("ARG")[0])
    assert least is not None
    assert version is not None
    assert tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))
    assert "FROM python:${PYTHON}-slim AS source" in _LINES


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_target_installs_extras_that_exist_and_ends_as_the_program_of_a_plain_user(target: str) -> None:
    lines = _stage(target)
    assert lines[0] == f"FROM source AS {target}"
    extras = re.search(r'"\.\[([a-z0-9,]+)\]"', " ".join(lines))
    assert extras is not None
    assert set(extras[1].split(",")) <= set(_PROJECT["project"]["optional-dependencies"])
    assert {"slurm", "ray", "s3", "radiology"} <= set(extras[1].split(","))
    (program,) = _PROJECT["project"]["scripts"]
    assert lines[-1] == f'ENTRYPOINT ["{program}"]'
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["dino"]
    assert "useradd --create-home --uid 1000 dino" in " ".join(_stage("source"))
    assert ("--torch-backend=cpu" in " ".join(lines)) == (target == "cpu")


def test_everything_that_the_package_is_built_from_is_copied_and_not_ignored() -> None:
    copied = {name for words in _words("COPY") for name in words.split()[:-1]}
    roots = set(_PROJECT["tool"]["setuptools"]["package-dir"].values())
    needed = {"pyproject.toml", _PROJECT["project"]["readme"], *_PROJECT["project"]["license-files"], *roots}
    assert needed == copied
    assert all((_ROOT / name).exists() for name in copied)
    rules = (_ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all(any(fnmatch.fnmatch(name, rule) for rule in kept) for name in needed)


def test_nothing_is_fetched_by_address_and_no_secret_is_baked_in() -> None:
    assert not [line for line in _LINES if "http" in line or line.startswith("ADD ")]
    assert not re.search(r"(?i)token|secret|password|access_key", _RECIPE)
