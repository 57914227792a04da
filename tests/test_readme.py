"""What the README says can be typed, exists; the files and links it names, too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import run_command

from wsi_dino.cli.verbs import GROUPS, VERBS
from wsi_dino.encoders.registry import records

_REPOSITORY = Path(__file__).resolve().parent.parent
_README = (_REPOSITORY / "README.md").read_text(encoding="utf-8")
_PAGES = [_REPOSITORY / "README.md", _REPOSITORY / "CONTRIBUTING.md", *sorted((_REPOSITORY / "docs").rglob("*.md"))]


def _typed() -> list[str]:
    """Every `wsi-dino ...` line of the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", _README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("wsi-dino ")]


def _mentioned() -> set[str]:
    """Every `wsi-dino VERB --option` in the text of all pages."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in _PAGES)
    return {match.strip("`") for match in re.findall(r"`wsi-dino [^`\n]*`", text)}


def test_readme_is_short() -> None:
    assert len(_README.splitlines()) < 150


@pytest.mark.parametrize("line", sorted({*_typed(), *_mentioned()}))
def test_commands_and_options_exist(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)[1:]
    verb = words[0]
    if verb.startswith("-"):
        assert run_command(tmp_path, *words).code == 0
        return
    assert verb in {**VERBS, **GROUPS}, f"the README names the verb {verb}"
    command = words[:2] if verb in GROUPS and len(words) > 1 else [verb]
    help_page = run_command(tmp_path, *command, "--help").stdout
    assert help_page.startswith(f"Usage: wsi-dino {' '.join(command)}")
    for option in (word for word in words[1:] if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", help_page), f"{verb} has no option {option}"


def test_every_verb_is_in_the_readme() -> None:
    assert {verb for verb in [*VERBS, *GROUPS] if f"`wsi-dino {verb}`" not in _README} == set()


def test_every_listed_encoder_is_registered_with_its_dimension() -> None:
    known = {record.name: record for record in records()}
    for name, dim, licence in (("efficientnet-lite0", 1280, "Apache-2.0"), ("dinov3-s", 384, "DINOv3 License")):
        assert (known[name].embed_dim, known[name].licence) == (dim, licence)
    table = _README[_README.index("## Encoders") : _README.index("## Honest limits")]
    named = set(re.findall(r"`([a-z0-9-]+)`", table)) - {"timm"}
    assert named
    assert named - set(known) == set()  # docs/encoders.md has all of them, held by a test of its own


def test_options_in_the_text_exist(tmp_path: Path) -> None:
    pages = "".join(run_command(tmp_path, verb, "--help").stdout for verb in VERBS)
    for option in set(re.findall(r"`(--[a-z-]+)", _README)) - {"--torch-backend"}:
        assert option in pages, option


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pictures_are_small() -> None:
    for picture in (_REPOSITORY / "docs" / "images").iterdir():
        assert picture.stat().st_size < 200_000


def test_make_targets_exist() -> None:
    makefile = (_REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z]+)", _README)) - {"sure"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_file_formats_and_pages_hold_no_path_of_a_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|opt|root|home)/", page.read_text(encoding="utf-8")) == []
