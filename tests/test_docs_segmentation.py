"""The page about segmentation: its commands run, on drawn copies and with a small encoder in place of a large one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command
from toy_volumes import drawn_case, make_autopet, make_hecktor, make_msd, write_volume

from wsi_dino.segmentation.case_reading import read_case
from wsi_dino.segmentation.scores import CONVENTIONS

_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "segmentation.md").read_text(encoding="utf-8")
_SMALL = "timm/test_vit.r160_in1k"


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("wsi-dino ")]


def _in_small(words: list[str]) -> list[str]:
    typed = [
        _SMALL if word == "dinov3-s" else word.replace("dinov3-s+", "timm__test_vit.r160_in1k-random-0+")
        for word in words
    ]
    if words[1] == "segment":
        typed += ["--epochs", "1", "--views", "1", "--workers", "1"]
    if _SMALL in typed or words[1] == "segment-predict":
        typed += ["--random-weights", "0"]
    return typed


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(tmp_path: Path) -> None:
    make_msd(tmp_path, n_cases=6)
    make_hecktor(tmp_path)
    study = make_autopet(tmp_path) / "PETCT_3d" / "01-02-2003-NA-PET CT-00006"
    (study / "SUV.nii.gz").write_bytes((study / "SEG.nii.gz").read_bytes())
    commands = _commands()
    assert len(commands) >= 7
    for words in commands:
        if "--model" in words:
            pytest.importorskip("monai", reason="MONAI is not installed")
        ran = run_command(tmp_path, *_in_small(words))
        assert ran.code == 0, f"{words}: {ran.stdout}{ran.stderr}"
    assert len(list((tmp_path / "labels").glob("*.nii.gz"))) == 6


def test_the_example_of_a_dataset_opens_its_folder(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(block, "docs/segmentation.md", "exec"), made)
    for number in (1, 2, 3):
        image, labels = drawn_case(number)
        write_volume(tmp_path / "images" / f"p{number}_a.nii.gz", image)
        write_volume(tmp_path / "labels" / f"p{number}_a.nii.gz", (labels == 1).astype("uint8"))
    dataset = made["OPENERS"]["mine"](tmp_path)
    assert [case.patient_id for case in dataset.cases] == ["p1", "p2", "p3"]
    assert set(read_case(dataset.cases[0], dataset).labels.ravel()) == {0, 1}


def test_the_page_names_every_convention() -> None:
    missing = [name for name in CONVENTIONS if f"`{name}`" not in _PAGE]
    assert missing == []
