"""Each command that is divided: parts do the work, write no results, and the command without a part gives one run's."""

from __future__ import annotations

from pathlib import Path

import pytest
from chest_folders import picture
from command_line import Ran, run_command
from PIL import Image
from toy_neurons import drawn_neurons, write_pair
from toy_outcomes import make_outcome_run
from toy_volumes import make_msd

_TINY = ("--encoder", "timm/test_vit.r160_in1k", "--random-weights", 0)


def _divided(folder: Path, *command: object) -> list[Ran]:
    """Run parts and then the whole in `folder`; return how the parts ended."""
    parts = [run_command(folder, *command, "--json", "--shard", f"{part}/2") for part in (1, 2)]
    assert [part.code for part in parts] == [0, 0], parts[0].stderr + parts[1].stderr
    return parts


def _results(folder: Path, *names: str) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for name in names for path in folder.rglob(name)}
    return {name: content for name, content in found.items() if "/.state/" not in name}


def test_groups_of_images_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_dino.radiology.chest_features._SHARD_IMAGES", (16, 16))
    (tmp_path / "images").mkdir()
    lines = ["image,patient_id,disc"]
    for number in range(40):
        Image.fromarray(picture(number, bool(number // 2 % 2))).save(tmp_path / "images" / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,p{number // 2},{number // 2 % 2}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    command = ("radiology", "chest-xray", *_TINY, "--dataset", "t.csv", "--root", "images", "--size", 160,
               "--bootstrap", 100, "--no-pictures", "--run")  # fmt: skip
    parts = _divided(tmp_path, *command, "parts")
    assert sum(part.json["done"] for part in parts) == 3
    assert _results(tmp_path / "parts", "metrics.json") == {}
    for run in ("parts", "one"):
        assert run_command(tmp_path, *command, run).code == 0
    names = ("metrics.json", "predictions.csv", "report.html", "*.h5")
    assert _results(tmp_path / "parts", *names) == _results(tmp_path / "one", *names)


def test_folds_of_slides_are_divided(tmp_path: Path) -> None:
    for name in ("one", "parts"):
        (tmp_path / name).mkdir()
        make_outcome_run(tmp_path / name, 24)
    command = ("mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", "--hidden-dim", 8,
               "--attention-dim", 4, "--epochs", 2, "--bootstrap", 100, "--folds", 3)  # fmt: skip
    parts = _divided(tmp_path / "parts", *command)
    assert [part.json["done"] for part in parts] == [2, 1]
    assert _results(tmp_path / "parts" / "run", "metrics.json") == {}
    for name in ("one", "parts"):
        assert run_command(tmp_path / name, *command).code == 0
    names = ("metrics.json", "predictions.csv", "report.html", "*.safetensors")
    assert _results(tmp_path / "parts" / "run", *names) == _results(tmp_path / "one" / "run", *names)


@pytest.mark.slow
def test_folds_of_volumes_are_divided(tmp_path: Path) -> None:
    make_msd(tmp_path, n_cases=6)
    command = ("radiology", "segment", "--dataset", "msd-task04", "--root", ".", *_TINY, "--views", 1, "--workers", 1,
               "--folds", 2, "--epochs", 1, "--run")  # fmt: skip
    parts = _divided(tmp_path, *command, "parts")
    assert all(part.json["done"] >= 1 for part in parts)
    assert _results(tmp_path / "parts", "metrics.json") == {}
    for run in ("parts", "one"):
        assert run_command(tmp_path, *command, run).code == 0
    names = ("*.safetensors", "*.nii.gz")  # cases.csv tells seconds, too
    assert _results(tmp_path / "parts", *names) == _results(tmp_path / "one", *names)


@pytest.mark.slow
def test_sections_are_divided_and_the_rest_is_one_workers(tmp_path: Path) -> None:
    pytest.importorskip("waterz")
    (train, train_labels), (test, test_labels) = (
        write_pair(tmp_path, name, *drawn_neurons(seed=seed)) for seed, name in enumerate(("train", "test"))
    )
    command = ("radiology", "em", "--train-image", train, "--train-labels", train_labels, "--test-image", test,
               "--test-labels", test_labels, *_TINY, "--upscale", 2, "--size", 96, "--views", 1, "--steps", 2,
               "--run", "run")  # fmt: skip
    _divided(tmp_path, *command)
    assert _results(tmp_path / "run", "metrics.json") == {}
    stages = run_command(tmp_path, "status", "run", "--json").json["stages"]
    assert stages
    assert all(stage["left"] == 0 for stage in stages)
