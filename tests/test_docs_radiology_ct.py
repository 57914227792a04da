"""The commands of the page on CT run as they stand there, with a tiny network in the encoder's place."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from ct_fixtures import chest_hu, make_fake_ct_rate, write_nifti

_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "radiology-ct.md").read_text(encoding="utf-8")


def _commands() -> list[list[str]]:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_fake_ct_rate(folder / "CT-RATE", 8, 4)
    random, rows = np.random.default_rng(0), []
    for number in range(16):
        write_nifti(folder / f"volumes/{number}.nii.gz", chest_hu(random, effusion=bool(number % 2), n_slices=2))
        rows.append([f"{number}.nii.gz", f"p{number}", number % 2, random.random()])
    with (folder / "nodules.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["volume", "patient_id", "malignant", "volume_mm3"], *rows])
    return folder


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_commands_of_the_page_run(words: list[str], folder: Path) -> None:
    place = words.index("--encoder") + 1
    words = [*words[:place], "timm/test_vit", "--random-weights", "0", *words[place + 1 :], "--bootstrap", "100"]
    ran = run_command(folder, *words, "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["labels"]


def test_the_page_tells_every_window_and_option_that_there_is(tmp_path: Path) -> None:
    from wsi_dino.volumes.windows import WINDOWS

    for name, window in WINDOWS.items():
        assert re.search(rf"{name}`?:? ?\(?{window.low_hu} to {window.high_hu}", _PAGE), name
    options = run_command(tmp_path, "radiology", "ct", "--help").stdout
    for option in set(re.findall(r"--[a-z][a-z-]+", _PAGE)):
        assert option in options, option
