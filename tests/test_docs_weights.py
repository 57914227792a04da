"""The page about weights: its commands run, with a small encoder in place of the large one they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import run_command
from local_hub import ACCEPTED, NOT_ACCEPTED, LocalHub, Repository, hub_of_this_process

from wsi_dino.encoders.loading import load_backbone
from wsi_dino.encoders.registry import get_record

_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "weights.md").read_text(encoding="utf-8")
_NAMED, _SMALL = "uni", "timm/test_vit.r160_in1k"


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("wsi-dino ")]


def _in_small(words: list[str]) -> list[str]:
    return [re.sub(rf"^{_NAMED}(?==|$)", _SMALL, word) for word in words]


def _publish(hub: LocalHub, folder: Path) -> None:
    from safetensors.torch import save

    network = load_backbone(get_record(_SMALL), random_weights=1).backbone.state_dict()
    content = save({key.removeprefix("model."): tensor.contiguous() for key, tensor in network.items()})
    record = get_record(_SMALL)
    hub.repositories[record.source] = Repository({record.weights_file: content}, gated=True)
    (folder / "mine.safetensors").write_bytes(content)


def _make_run(folder: Path) -> None:
    from PIL import Image

    (folder / "slides").mkdir()
    Image.new("RGB", (600, 600), (200, 90, 160)).save(folder / "slides" / "a.png")
    options = ("--run", "RUN", "--mpp", "native", "--tile-px", 160)
    assert run_command(folder, "tile", "slides", *options).code == 0


def test_the_commands_of_the_page_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _make_run(tmp_path)
    with hub_of_this_process(tmp_path, monkeypatch) as hub:
        _publish(hub, tmp_path)
        monkeypatch.setenv("HF_TOKEN", ACCEPTED)
        for words in _commands():
            if "--weights-dir" in words:  # the machine without a network begins here
                monkeypatch.setenv("WSI_DINO_OFFLINE", "1")
                monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
            typed = [word.replace("pytorch_model.bin", "mine.safetensors") for word in _in_small(words)]
            ran = run_command(tmp_path, *typed)
            assert ran.code == 0, f"{words}: {ran.stdout}{ran.stderr}"
    assert list((tmp_path / "RUN" / "features").rglob("a.h5"))


@pytest.mark.parametrize(("token", "kind"), [("", "no-token"), (NOT_ACCEPTED, "terms"), ("hf_typo", "bad-token")])
def test_kinds_of_the_table_are_those_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, kind: str
) -> None:
    with hub_of_this_process(tmp_path, monkeypatch) as hub:
        _publish(hub, tmp_path)
        monkeypatch.setenv("HF_TOKEN", token)
        (row,) = run_command(tmp_path, "weights", "fetch", _SMALL, "--json").json["rows"]
    assert row["kind"] == kind
    assert f"| `{kind}` |" in _PAGE


def test_every_kind_has_its_row() -> None:
    from wsi_dino.errors import HubError

    listed = set(re.findall(r"``([a-z-]+)``", str(HubError.__doc__)))
    rows = set(
        re.findall(r"`([a-z-]+)`", "".join(line.split("|")[1] for line in _PAGE.splitlines() if line[:1] == "|"))
    )
    assert listed == rows - {"kind", "file"}
