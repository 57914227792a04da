"""Imports go one way, importing does nothing, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent
# What each room may import besides itself. Siblings never import siblings.
_FOUNDATION = {"__init__", "errors", "provenance", "heartbeat"}
_RUN = {"claims", "run_folder", "item_queue", "share", "worker_record", "run_status", "remote"}
_LOWER = {"feature_file", "model_file", "encoders", "evaluation"}
_ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "provenance": {"__init__", "errors"},
    "heartbeat": {"errors"},
    "share": {"errors"},
    "remote": _FOUNDATION,
    "claims": _FOUNDATION,
    "run_folder": _FOUNDATION,
    "worker_record": _FOUNDATION | {"run_folder", "share"},
    "item_queue": _FOUNDATION | {"claims", "run_folder", "share", "worker_record"},
    "run_status": _FOUNDATION | {"run_folder", "worker_record"},
    "feature_file": _FOUNDATION,
    "model_file": _FOUNDATION,
    "encoders": _FOUNDATION,
    "evaluation": _FOUNDATION,
    "volumes": _FOUNDATION,
    "configs": set(),
    "pathology": _FOUNDATION | _RUN | _LOWER | {"configs"},
    "mil": _FOUNDATION | _RUN | _LOWER | {"configs"},
    "radiology": _FOUNDATION | _RUN | _LOWER | {"configs", "volumes"},
    "segmentation": _FOUNDATION | _RUN | _LOWER | {"configs", "volumes"},
    "file_check": set(),
    "run_check": _FOUNDATION | _RUN | _LOWER | {"file_check", "pathology", "mil"},
    "install_check": _LOWER | {"pathology"},
    "paper": _FOUNDATION | _RUN | _LOWER | {"pathology", "segmentation"},
    "cli": _FOUNDATION
    | _RUN
    | _LOWER
    | {"pathology", "mil", "radiology", "segmentation", "volumes"}
    | {"file_check", "run_check", "install_check", "configs", "paper"},
}
_HEAVY = ("torch", "torchvision", "timm", "pandas", "sklearn", "cv2", "matplotlib", "lifelines", "scipy", "tiatoolbox")
_HEAVY += ("nibabel", "pydicom", "SimpleITK")


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((_REPOSITORY / "wsi_dino").rglob("*.py")):
        yield path.relative_to(_REPOSITORY / "wsi_dino").with_suffix("").parts[0], path
    for folder in ("cli", "configs"):
        for path in sorted((_REPOSITORY / folder).rglob("*.py")):
            yield folder, path


def _imported_rooms(path: Path) -> set[str]:
    """Rooms of wsi_dino that a file imports anywhere, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}:{node.lineno}: relative imports hide which room is meant")
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "wsi_dino":
            names = [f"wsi_dino.{alias.name}" for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            head, _, rest = name.partition(".")
            if head == "wsi_dino":
                room = rest.split(".")[0]
                rooms.add("__init__" if room.startswith("__") or not room else room)
    return rooms


@pytest.mark.parametrize(
    ("room", "path"), [pytest.param(room, path, id=f"{room}-{path.stem}") for room, path in _modules()]
)
def test_imports_go_one_way(room: str, path: Path) -> None:
    assert room in _ALLOWED, f"{path} is in no known room: add it to the picture in docs/architecture.md and here"
    assert _imported_rooms(path) - {room} <= _ALLOWED[room]


def test_allowed_imports_have_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(_ALLOWED):
        ready = {room for room in _ALLOWED if room not in done and _ALLOWED[room] <= done}
        assert ready, f"a circle among {set(_ALLOWED) - done}"
        done |= ready


def _python(code: str, cwd: Path) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


_HELP = """
import sys
from wsi_dino.cli import main
try:
    main({arguments!r})
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("LOADED", *sorted(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["tile", "--help"],
        ["embed", "--help"],
        ["mil", "--help"],
        ["radiology", "ct", "--help"],
        ["radiology", "segment", "--help"],
        ["paper", "run", "--help"],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    output = _python(_HELP.format(arguments=arguments, heavy=_HEAVY), tmp_path)
    assert output.splitlines()[-1] == "LOADED"


def test_encoder_records_are_read_without_torch(tmp_path: Path) -> None:
    output = _python(_HELP.format(arguments=["encoders"], heavy=_HEAVY), tmp_path)
    assert "efficientnet-lite0" in output
    assert output.splitlines()[-1] == "LOADED"


_IMPORT_ALL = """
import importlib, os, pkgutil, socket, sys
def refuse(*_, **__):
    raise AssertionError("importing reached for the network")
socket.socket.connect = refuse
import wsi_dino
names = ["wsi_dino", "wsi_dino.cli"]
for name in names:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
import wsi_dino.cli
torch = sys.modules.get("torch")
assert torch is None or not torch.cuda.is_initialized()
"""


@pytest.mark.slow
def test_importing_everything_does_nothing(tmp_path: Path) -> None:
    """No print, no network, no device, no folder."""
    assert _python(_IMPORT_ALL, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_public_names_are_what_they_say() -> None:
    code = "import wsi_dino, sys; print(all(hasattr(wsi_dino, n) for n in wsi_dino.__all__), len(sys.modules) < 150)"
    assert _python(code, _REPOSITORY).split() == ["True", "True"]
