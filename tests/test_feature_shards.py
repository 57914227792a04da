"""Which shard holds the features of a file as it is now."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from wsi_dino.errors import FeatureFileError
from wsi_dino.feature_file import FeatureFile, write_feature_file
from wsi_dino.radiology.feature_shards import FeatureShards, _content
from wsi_dino.run_folder import RunFolder


def _add(shards: FeatureShards, root: Path, shard: str, value: float, files: list[str], request: str = "r") -> None:
    features = np.full((len(files), 3), value, np.float32)
    write_feature_file(shards.path(shard), FeatureFile(features, np.zeros((len(files), 2), np.int64)))
    entries = [
        [file, (root / file).stat().st_size, (root / file).stat().st_mtime_ns, _content(root / file)] for file in files
    ]
    row = {"shard": shard, "request": request, "status": "done", "images": entries}
    shards.run.write_row(shards.stage, shard, row)


@pytest.fixture
def shards(tmp_path: Path) -> FeatureShards:
    root = tmp_path / "images"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).write_text(f"first content of {name}")
    made = FeatureShards(RunFolder(tmp_path / "run"), tmp_path / "run" / "f", "r")
    _add(made, root, "5", 1.0, ["a", "b"])
    return made


@pytest.mark.parametrize("later", ["1", "9"])
def test_a_changed_file_is_found_in_its_new_shard_whatever_its_name(
    later: str, shards: FeatureShards, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    (root / "a").write_text("other content of a")
    shards.scan()
    assert shards.find(root, "a") is None
    _, members = shards.plan(root, ["a", "b"], 10)
    assert list(members.values()) == [["a"]]
    _add(shards, root, later, 2.0, ["a"])
    shards.scan()
    features, known = shards.load(root, ["a", "b"], 3)
    assert known.tolist() == [0, 1]
    assert features[:, 0].tolist() == [2.0, 1.0]
    (root / "a").write_text("first content of a")
    shards.scan()
    assert shards.load(root, ["a", "b"], 3)[0][:, 0].tolist() == [1.0, 1.0]


def test_same_size_other_content_is_noticed(shards: FeatureShards, tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "a").write_text("First content of a")
    shards.scan()
    assert shards.find(root, "a") is None
    (root / "a").write_text("first content of a")
    os.utime(root / "a", ns=(1, 1))
    shards.scan()
    assert shards.find(root, "a") is not None


def test_another_request_finds_nothing(shards: FeatureShards, tmp_path: Path) -> None:
    other = FeatureShards(shards.run, shards.folder, "other")
    other.scan()
    assert other.find(tmp_path / "images", "a") is None


def test_a_broken_shard_is_removed_and_planned_again(shards: FeatureShards, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shards.path("5").write_bytes(shards.path("5").read_bytes()[:500])
    shards.scan()
    with pytest.raises(FeatureFileError):
        shards.load(root, ["a", "b"], 3)
    shards.scan()
    assert list(shards.plan(root, ["a", "b"], 10)[1].values()) == [["a", "b"]]
