"""wsi-dino.yaml gives options their values; flags win; what it says wrongly is an error that names it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import typer
from command_line import run_command

from wsi_dino.cli import project_file
from wsi_dino.cli.app import app
from wsi_dino.cli.verbs import VERBS
from wsi_dino.errors import ConfigError


@pytest.fixture
def command() -> click.Command:
    """The whole program with all verbs."""
    app.registered_commands.clear()
    for name, function in VERBS.items():
        app.command(name)(function)
    return typer.main.get_command(app)


def _defaults(folder: Path, text: str, command: click.Command, monkeypatch: pytest.MonkeyPatch) -> dict:
    (folder / "wsi-dino.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    return project_file.defaults(command)


def test_no_file_gives_no_defaults(tmp_path: Path, command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_file.defaults(command) == {}


def test_paths_go_to_every_verb_that_has_them(
    tmp_path: Path, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _defaults(tmp_path, "slides: slides\nlabels: ../l.csv\nrun: r\n", command, monkeypatch)
    assert found["tile"] == {"slides": str(tmp_path / "slides"), "run": str(tmp_path / "r")}
    assert found["doctor"]["run"] == str(tmp_path / "r")
    assert "slides" not in found["encoders"]


def test_options_are_spelled_as_typed(tmp_path: Path, command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _defaults(tmp_path, "tile: {mpp: 0.25, tile_px: 256, use_otsu: true}\n", command, monkeypatch)
    assert {key: found["tile"][key] for key in ("mpp", "tile_px", "use_otsu")} == {
        "mpp": 0.25,
        "tile_px": 256,
        "use_otsu": True,
    }


def test_json_is_spelled_as_typed_too(tmp_path: Path, command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _defaults(tmp_path, "tile: {json: true}\n", command, monkeypatch)["tile"]["as_json"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide: here\n", r"slide: .*Did you mean 'slides'"),
        ("tile: {mmp: 0.5}\n", r"section tile has no option 'mmp'.*Did you mean 'mpp'"),
        ("slides: [\n", r"wsi-dino\.yaml"),
        ("- a\n- b\n", r"wsi-dino\.yaml"),
        ("tile: 3\n", r"tile"),
        ("\x00", r"wsi-dino\.yaml"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, command: click.Command, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _defaults(tmp_path, text, command, monkeypatch)


def test_mistake_ends_a_command_with_2(tmp_path: Path) -> None:
    (tmp_path / "wsi-dino.yaml").write_text("tile: {mmp: 0.5}\n")
    ran = run_command(tmp_path, "tile", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "ConfigError"


def test_wrong_value_ends_a_command_with_2(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "wsi-dino.yaml").write_text("slides: slides\ntile: {tile_px: large}\n")
    ran = run_command(tmp_path, "tile")
    assert ran.code == 2
    assert "large" in ran.stderr


def test_flag_wins_over_the_file(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "slides").mkdir()
    Image.new("RGB", (600, 600), (200, 90, 160)).save(tmp_path / "slides" / "a.png")
    (tmp_path / "wsi-dino.yaml").write_text("slides: slides\nrun: from-file\ntile: {mpp: native, tile_px: 100}\n")
    assert run_command(tmp_path, "tile").code == 0
    ran = run_command(tmp_path, "tile", "--tile-px", "300", "--run", "typed", "--json")
    assert ran.json["tiles"] == 4
    assert (tmp_path / "from-file" / "tiles" / "a.h5").exists()
    assert (tmp_path / "typed" / "tiles" / "a.h5").exists()
