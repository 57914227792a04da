"""The page about chest X-rays: its commands run, on small copies and with a small encoder in place of a large one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from chest_folders import make_fake_nih14, make_fake_rsna, picture
from command_line import run_command
from PIL import Image

from wsi_dino.evaluation.multilabel import ACCURACIES, AVERAGES, RANKINGS
from wsi_dino.radiology.datasets.image_set import ImageSet
from wsi_dino.radiology.datasets.reader import DataRequest, DatasetReader

_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "radiology.md").read_text(encoding="utf-8")
_IN_SMALL = {"dinov3-s": "timm/vit_tiny_patch16_224", "224": "32", "512": "64"}


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("wsi-dino radiology chest-xray")]


def _make_table(folder: Path) -> None:
    (folder / "images").mkdir()
    lines = ["image,patient_id,age,view,Effusion"]
    for number in range(24):
        Image.fromarray(picture(number, bool(number % 2))).save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png,p{number},{40 + number},{'AP' if number % 3 else 'PA'},{number % 2}")
    (folder / "table.csv").write_text("\n".join(lines))


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(tmp_path: Path) -> None:
    _make_table(tmp_path)
    make_fake_nih14(tmp_path / "nih", 60)
    make_fake_rsna(tmp_path / "rsna", 60)
    assert len(_commands()) >= 6
    for words in _commands():
        typed = [_IN_SMALL.get(word, word) for word in words]
        if any(word.startswith("timm/") for word in typed):
            typed += ["--random-weights", "0"]
        ran = run_command(tmp_path, *typed, "--bootstrap", 100, "--no-pictures")
        assert ran.code == 0, f"{words}: {ran.stdout}{ran.stderr}"
    made = {str(path.relative_to(tmp_path / "RUN")) for path in (tmp_path / "RUN" / "radiology").rglob("*")}
    for name in ("metrics.json", "predictions.csv", "report.html"):
        assert f"radiology/table/view/efficientnet-lite0@32/{name}" in made
    assert {"radiology/table/study/auc-by-size.svg", "radiology/table/study/study.csv"} <= made


def test_the_page_names_every_convention() -> None:
    for name in (*ACCURACIES, *RANKINGS[:4], *(f"`{average}`" for average in AVERAGES)):
        assert name in _PAGE, name


def test_the_example_of_a_data_set_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
    there: dict[str, object] = {}
    exec(block, there)
    reader = there["READER"]
    assert isinstance(reader, DatasetReader)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    images = reader.read(tmp_path, DataRequest())
    assert isinstance(images, ImageSet)
    assert images.files == ("a.png", None)
