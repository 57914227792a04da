"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import wsi_dino
import wsi_dino.cli


def _modules() -> list[str]:
    packages = ((wsi_dino, "wsi_dino."), (wsi_dino.cli, "wsi_dino.cli."))
    names = {m.name for package, prefix in packages for m in pkgutil.walk_packages(package.__path__, prefix)}
    return sorted(names)


@pytest.mark.parametrize("name", _modules())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


def test_examples_are_found_at_all() -> None:
    finder = doctest.DocTestFinder()
    found = finder.find(importlib.import_module("wsi_dino.run_folder"))
    assert sum(len(test.examples) for test in found) >= 3
