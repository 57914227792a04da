"""docs/add-an-encoder.md does what it says, block by block."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from page_code import read_blocks, run_page

from wsi_dino.encoders.plugins import ENTRY_POINT_GROUP
from wsi_dino.feature_file import read_feature_file
from wsi_dino.provenance import file_sha256

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "add-an-encoder.md"


@pytest.mark.slow
def test_the_page_works_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [block.kind for block in read_blocks(_PAGE)].count("sh") >= 4
    session = run_page(_PAGE, tmp_path)
    assert [line for line, ran in session.ran if "warning" in ran.stderr] == []
    file = read_feature_file(tmp_path / "run" / "features" / "our-vit" / "drawn.h5")
    assert file.features.shape[1] == 384
    assert (file.identity["input_px"], file.identity["pooling"]) == (256, "cls+mean")
    assert file.provenance["weights_sha256"] == file_sha256(tmp_path / "our_vit.safetensors")
    assert sorted(os.listdir(tmp_path / "run" / "features")) == ["our-network", "our-vit"]


def test_the_entry_point_of_the_page_is_the_group_that_is_read() -> None:
    (text,) = [block.text for block in read_blocks(_PAGE) if block.kind == "toml"]
    assert list(tomllib.loads(text)["project"]["entry-points"]) == [ENTRY_POINT_GROUP]
