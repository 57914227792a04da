"""timm must import whatever build of torchvision stands beside torch."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import importlib.util, logging, pathlib, sys
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(levelname)s %(message)s")
from wsi_dino.encoders import torchvision_guard as guard
{setup}
guard.ensure_torchvision()
guard.ensure_torchvision()
import timm
from torchvision.transforms import v2
print("imported", timm.__name__)
"""


def _run(setup: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(setup=setup)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_imports_beside_whatever_torchvision_is_installed() -> None:
    assert _run("").strip().endswith("imported timm")


def test_it_is_logged_once_when_the_extension_cannot_be_loaded() -> None:
    said = _run("guard.extension_trouble = lambda: 'broken on purpose'")
    assert said.count("doing without it") == 1
    assert "broken on purpose" in said
    assert said.strip().endswith("imported timm")


def test_nothing_is_declared_where_the_extension_loads() -> None:
    program = (
        "from wsi_dino.encoders import torchvision_guard as guard\n"
        "guard.extension_trouble = lambda: None\n"
        "guard._declare_operators = lambda: 1/0\n"
        "guard.ensure_torchvision()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
