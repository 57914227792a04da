"""Data sets of images and volumes are found by themselves: a file in the folder is all that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chest_folders import make_fake_nih14, make_fake_rsna, picture
from command_line import run_command
from ct_fixtures import make_fake_ct_rate
from PIL import Image

import wsi_dino.radiology.datasets as package
from wsi_dino.errors import ConfigError
from wsi_dino.radiology.datasets.image_set import ImageSet
from wsi_dino.radiology.datasets.reader import (
    FOLDS,
    DataRequest,
    DatasetReader,
    dataset_readers,
    read_images,
    read_volumes,
)

# a small copy of every registered data set, with its quirks: a new one needs one, too
_COPIES: dict[str, Callable[[Path], object]] = {
    "nih14": make_fake_nih14,
    "rsna": make_fake_rsna,
    "ct-rate": make_fake_ct_rate,
}
_READERS: list[DatasetReader] = [*dataset_readers("images").values(), *dataset_readers("volumes").values()]


@pytest.mark.parametrize("reader", _READERS, ids=lambda reader: reader.name)
def test_every_reader_keeps_the_contract(reader: DatasetReader, tmp_path: Path) -> None:
    _COPIES[reader.name](tmp_path / "copy")
    read: Callable[..., Any] = read_images if reader.holds == "images" else read_volumes
    whole = read(reader.name, tmp_path / "copy", DataRequest())
    assert whole.name == reader.name
    assert not {"auto", FOLDS} & {*reader.splits, *reader.releases}
    for split in reader.splits:
        split_up = read(reader.name, tmp_path / "copy", DataRequest(split=split))
        assert {"train", "test"} <= _subsets(split_up)
    assert _subsets(read(reader.name, tmp_path / "copy", DataRequest(split=FOLDS))) <= {None}
    first, last = whole.label_names[0], whole.label_names[-1]
    assert read(reader.name, tmp_path / "copy", DataRequest(labels=(last, first))).label_names == (last, first)
    with pytest.raises(ConfigError, match=r"has auto, .*folds"):
        read(reader.name, tmp_path / "copy", DataRequest(split="mine"))
    with pytest.raises(ConfigError, match="--release"):
        read(reader.name, tmp_path / "copy", DataRequest(release="mine"))


def _subsets(data: Any) -> set[str | None]:
    if isinstance(data, ImageSet):
        return set(data.subsets or ())
    return {row.subset for row in data.rows}


_ONE_FILE = '''
"""Rings and discs."""
from pathlib import Path
import numpy as np
from wsi_dino.radiology.datasets.image_set import ImageIndex, ImageSet
from wsi_dino.radiology.datasets.reader import DatasetReader

def _read(root, request):
    index = ImageIndex(root)
    names = sorted(index.paths)
    targets = np.array([[int(name[0])] for name in names], np.float32)
    return ImageSet("rings", root, tuple(names), tuple(names), tuple(n[1:3] for n in names), ("ring",), targets)

READER = DatasetReader("rings", "images", "rings of white", _read)
'''


@pytest.fixture
def rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a data set of one file into the folder."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more/rings.py").write_text(_ONE_FILE)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "more")])
    dataset_readers.cache_clear()
    yield tmp_path
    dataset_readers.cache_clear()


def test_a_new_data_set_is_one_file(rings: Path) -> None:
    (rings / "images").mkdir()
    for number in range(24):
        Image.fromarray(picture(number, bool(number % 2))).save(rings / f"images/{number % 2}{number:02d}.png")
    ran = run_command(rings, "radiology", "chest-xray", "--dataset", "rings", "--root", "images", "--run", "run",
                      "--encoder", "efficientnet-lite0", "--size", 32, "--bootstrap", 100, "--no-pictures", "--folds",
                      3, "--json")  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert ran.json["dataset"] == "rings"
    assert ran.json["protocol"]["split"].startswith("3-fold")
    ran = run_command(rings, "radiology", "chest-xray", "--dataset", "ring", "--root", "images", "--encoder", "x")
    assert ran.code == 2
