"""docs/add-an-encoder.md does what it says, block by block."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import run_command

from wsi_dino.encoders.plugins import ENTRY_POINT_GROUP, use_plugin_files
from wsi_dino.feature_file import read_feature_file
from wsi_dino.provenance import file_sha256

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "add-an-encoder.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")


def _run_block(kind: str, text: str, folder: Path) -> None:
    """Do with a block what its reader would do."""
    named = _FILE.match(text)
    if kind == "python" and named:
        (folder / named[1]).write_text(text, encoding="utf-8")
    elif kind == "python":
        exec(compile(text, str(_PAGE), "exec", dont_inherit=True), {})
    elif kind == "yaml":
        (folder / "wsi-dino.yaml").write_text(text, encoding="utf-8")
    elif kind == "sh":
        for line in text.splitlines():
            ran = run_command(folder, *shlex.split(line)[1:])
            assert ran.code == 0, f"{line}\n{ran.stdout}{ran.stderr}"
            assert "warning" not in ran.stderr


@pytest.mark.slow
def test_the_page_works_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = _BLOCK.findall(_PAGE.read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("sh") >= 4
    try:
        for kind, text in blocks:
            _run_block(kind, text, tmp_path)
    finally:
        use_plugin_files([])
        sys.modules.pop("my_encoder", None)
    file = read_feature_file(tmp_path / "run" / "features" / "our-vit" / "drawn.h5")
    assert file.features.shape[1] == 384
    assert (file.identity["input_px"], file.identity["pooling"]) == (256, "cls+mean")
    assert file.provenance["weights_sha256"] == file_sha256(tmp_path / "our_vit.safetensors")
    assert sorted(os.listdir(tmp_path / "run" / "features")) == ["our-network", "our-vit"]


def test_the_entry_point_of_the_page_is_the_group_that_is_read() -> None:
    (text,) = [text for kind, text in _BLOCK.findall(_PAGE.read_text(encoding="utf-8")) if kind == "toml"]
    assert list(tomllib.loads(text)["project"]["entry-points"]) == [ENTRY_POINT_GROUP]
