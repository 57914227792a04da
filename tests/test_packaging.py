"""What is on disk is what gets installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def _folders_with_code() -> set[str]:
    """Packages on disk, under the names they are imported by."""
    names = set()
    for top, package in (("wsi_dino", "wsi_dino"), ("cli", "wsi_dino.cli"), ("configs", "wsi_dino.configs")):
        for init in (_REPOSITORY / top).rglob("__init__.py"):
            names.add(".".join((package, *init.parent.relative_to(_REPOSITORY / top).parts)))
    return names


def test_package_list_equals_the_folders_on_disk(project: dict[str, Any]) -> None:
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(_folders_with_code())


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("wsi_dino", "cli", "configs"):
        for path in (_REPOSITORY / top).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py: nothing would install it"


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names inside a wheel built from this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    # from a copy, so that no build/ folder is left in the checkout
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=_REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    for name in listed.stdout.splitlines():
        if (_REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((_REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_wheel_holds_all_code_and_data(wheel_names: list[str]) -> None:
    expected = {"wsi_dino/py.typed"}
    for top, inside in (("wsi_dino", "wsi_dino"), ("cli", "wsi_dino/cli"), ("configs", "wsi_dino/configs")):
        for path in (_REPOSITORY / top).rglob("*"):
            if path.suffix in (".py", ".yaml", ".jinja", ".csv") and "__pycache__" not in path.parts:
                expected.add(f"{inside}/{path.relative_to(_REPOSITORY / top).as_posix()}")
    assert expected - set(wheel_names) == set()


@pytest.mark.slow
def test_wheel_exposes_no_bare_top_level_name(wheel_names: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name} == {"wsi_dino"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_versions_agree() -> None:
    import wsi_dino

    changelog = (_REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {wsi_dino.__version__}" in changelog


def test_imported_packages_are_declared(project: dict[str, Any]) -> None:
    """A package that only another dependency happens to bring is a missing line in pyproject.toml."""
    declared = {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in project["project"]["dependencies"]}
    extras = {
        re.split(r"[\[<>=!~ ]", line)[0].lower()
        for lines in project["project"]["optional-dependencies"].values()
        for line in lines
    }
    distributions = {
        "cv2": "opencv-python", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml",
        "openslide": "openslide-python", "click": "typer", "wsi_dino": "wsi_dino", "scipy": "scikit-learn",
        "tqdm": "huggingface_hub", "markupsafe": "jinja2", "open_clip": "open_clip_torch",
    }  # fmt: skip
    for top in ("wsi_dino", "cli"):
        for path in (_REPOSITORY / top).rglob("*.py"):
            for name in _imported(path) - set(sys.stdlib_module_names) - {"wsi_dino"}:
                package = distributions.get(name, name).lower()
                assert package in declared | extras, f"{path} imports {name}, which pyproject.toml does not declare"


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}
