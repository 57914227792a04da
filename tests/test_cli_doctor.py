"""doctor finds every kind of damage, and following its advice leads back to a clean run."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import Ran, run_command
from PIL import Image

from wsi_dino.feature_file import FeatureFile, read_feature_file, write_feature_file

_ENCODER = "efficientnet-lite0"
_N_SLIDES = 16


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a whole run: sixteen small pictures of two colours, tiled, embedded and learnt."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "slides").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["slide_id", "er"])
        for i in range(_N_SLIDES):
            colour = np.array([(225, 150, 190), (180, 90, 160)][i % 2])
            pixels = np.clip(colour + rng.normal(0, 12, (600, 600, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "slides" / f"S{i:02}.png")
            writer.writerow([f"S{i:02}", i % 2])
    for command in (
        "init slides --labels labels.csv --run run",
        "tile --tile-px 300",
        f"embed --encoder {_ENCODER}",
        "mil --task er --folds 4 --epochs 3 --bootstrap 100 --heatmaps 1",
    ):
        ran = run_command(folder, *command.split())
        assert ran.code == 0, ran.stderr
    text = (folder / "wsi-dino.yaml").read_text()
    text = text.replace("  mpp: native", "  mpp: native\n  tile_px: 300")
    text = text.replace("  folds: 5", "  folds: 4\n  epochs: 3\n  bootstrap: 100\n  heatmaps: 1")
    (folder / "wsi-dino.yaml").write_text(text)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(finished, tmp_path / "project")
    return tmp_path / "project"


def _doctor(project: Path, *more: str) -> Ran:
    return run_command(project, "doctor", "run", "--json", *more)


def test_whole_run_is_clean(finished: Path) -> None:
    ran = _doctor(finished)
    assert ran.code == 0, ran.stdout
    assert ran.json["problems"] == []
    checked = ran.json["checked"]
    assert checked["tile files"] == checked["contour files"] == checked["feature files"] == _N_SLIDES
    assert checked["attention files"] == _N_SLIDES
    assert checked["models"] == 4
    assert checked["pictures"] == _N_SLIDES + 1  # thumbnails and one heatmap


def test_checking_changes_nothing(project: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}
    _doctor(project)
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()} == before


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_byte_of_the_features(path: Path) -> None:
    with h5py.File(path) as h5:
        offset = h5["features"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 0xFF
    path.write_bytes(content)


def _not_finite(path: Path) -> None:
    file = read_feature_file(path)
    features = file.features.copy()
    features[1, 3] = np.nan
    write_feature_file(path, FeatureFile(features, file.coords, file.provenance))


def _one_tile_less(path: Path) -> None:
    file = read_feature_file(path)
    write_feature_file(path, FeatureFile(file.features[1:], file.coords[1:], file.provenance))


def _moved_tiles(path: Path) -> None:
    file = read_feature_file(path)
    write_feature_file(path, FeatureFile(file.features, file.coords + 1, file.provenance))


def _other_weights(path: Path) -> None:
    file = read_feature_file(path)
    write_feature_file(path, FeatureFile(file.features, file.coords, {**file.provenance, "weights_sha256": "0" * 64}))


def _nan_weights(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = {name: np.full_like(array, np.nan) for name, array in load_file(path).items()}
    save_file(weights, path)


def _stale_temporary(path: Path) -> None:
    path.touch()


def _remove(path: Path) -> None:
    path.unlink()


_MIL = f"mil/er/{_ENCODER}"
_FEATURES = f"features/{_ENCODER}"
_DAMAGE: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("tiles/S03.h5", _truncate, "broken or not a tile file", "tile"),
    ("tiles/S03.h5", _remove, "missing", "tile"),
    ("contours/S03.geojson", _truncate, "no GeoJSON", "tile"),
    ("contours/S03.geojson", _remove, "missing", "tile"),
    ("thumbnails/S03.jpg", _truncate, "no whole picture", "tile"),
    ("thumbnails/S03.jpg", _remove, "missing", "tile"),
    ("tiles.csv", _remove, "missing", "tile"),
    ("tiles.csv", lambda path: path.write_text("slide_id,status\n") and None, "says nothing of S00", "tile"),
    ("embed.csv", _remove, "missing", "embed"),
    (f"{_FEATURES}/S03.h5", _truncate, "broken or not a feature file", "embed"),
    (f"{_FEATURES}/S03.h5", _remove, "missing: this slide has tiles but no features", "embed"),
    (f"{_FEATURES}/S03.h5", _flip_a_byte_of_the_features, "broken or not a feature file", "embed"),
    (f"{_FEATURES}/S03.h5", _not_finite, "row 1 is not finite", "embed"),
    (f"{_FEATURES}/S03.h5", _one_tile_less, "3 tiles, but the tile file has 4", "embed"),
    (f"{_FEATURES}/S03.h5", _moved_tiles, "its coordinates are not those of the tile file", "embed"),
    (f"{_MIL}/metrics.json", _truncate, "no JSON", "mil"),
    (f"{_MIL}/metrics.json", _remove, "missing", "mil"),
    (f"{_MIL}/model/fold-1.safetensors", _truncate, "no whole model", "mil"),
    (f"{_MIL}/model/fold-1.safetensors", _nan_weights, "a weight is not finite", "mil"),
    (f"{_MIL}/predictions.csv", _remove, "missing", "mil"),
    (f"{_MIL}/report.html", _truncate, "the page is cut off", "mil"),
    ("features/.S03.h5.999999999.0a1b2c3d.tmp", _stale_temporary, "left by a killed command", "rm"),
]


@pytest.mark.parametrize(
    ("name", "damage", "text", "verb"), _DAMAGE, ids=[f"{i}-{row[0].split('/')[-1]}" for i, row in enumerate(_DAMAGE)]
)
def test_damage_is_found_and_advice_mends_it(
    project: Path, name: str, damage: Callable[[Path], None], text: str, verb: str
) -> None:
    damage(project / "run" / name)
    ran = _doctor(project)
    assert ran.code == 1
    found = [problem for problem in ran.json["problems"] if problem["path"] == name]
    assert found, ran.json["problems"]
    assert text in found[0]["text"]
    assert found[0]["redo"][-1].startswith(verb if verb == "rm" else f"wsi-dino {verb} ")
    for command in ran.json["redo"]:
        _follow(project, command)
    after = _doctor(project)
    assert after.json["problems"] == []
    assert after.code == 0


def _follow(project: Path, command: str) -> None:
    words = shlex.split(command)
    if words[0] == "rm":
        (project / words[1]).unlink()
    else:
        assert words[0] == "wsi-dino"
        ran = run_command(project, *words[1:])
        assert ran.code == 0, ran.stderr


def test_mixed_weights_are_found(project: Path) -> None:
    _other_weights(project / "run" / _FEATURES / "S03.h5")
    problems = _doctor(project).json["problems"]
    assert any("weights_sha256" in problem["text"] and "S03.h5" in problem["text"] for problem in problems)


def test_failed_slide_stays_a_problem(project: Path) -> None:
    (project / "slides" / "S03.png").write_bytes(b"no picture")
    assert run_command(project, "tile").code == 1
    problems = _doctor(project).json["problems"]
    assert any(problem["path"] == "tiles/S03.h5" and "failed" in problem["text"] for problem in problems)


def test_features_of_an_earlier_tiling_are_found(project: Path) -> None:
    assert run_command(project, "tile", "--tile-px", "200").code == 0
    ran = _doctor(project)
    assert sum("made from another tile file" in problem["text"] for problem in ran.json["problems"]) == _N_SLIDES


def test_quick_reads_no_values_but_finds_what_heads_show(project: Path) -> None:
    _not_finite(project / "run" / _FEATURES / "S03.h5")
    assert _doctor(project, "--quick").code == 0
    _one_tile_less(project / "run" / _FEATURES / "S04.h5")
    ran = _doctor(project, "--quick")
    assert [problem["path"] for problem in ran.json["problems"]] == [f"{_FEATURES}/S04.h5"]


def test_empty_run_is_clean_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    ran = run_command(tmp_path, "doctor", "run")
    assert ran.code == 0
    assert "nothing was tiled" in ran.stdout


def test_absent_run_is_wrong_input(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "doctor", "nowhere")
    assert ran.code == 2
    assert "no such folder" in ran.stderr


def test_without_a_run_the_installation_is_checked(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "doctor", "--json")
    found = {finding["name"]: finding for finding in ran.json["installation"]}
    assert {"torch", "torchvision", "timm", "OpenSlide", "OpenCV", "default encoder", "tiatoolbox"} <= set(found)
    assert found["torch"]["state"] == "ok"
    assert ran.code == (1 if any(finding["state"] == "problem" for finding in found.values()) else 0)


def test_broken_library_is_a_problem_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr("wsi_dino.install_check._check_opencv", broken)
    ran = run_command(tmp_path, "doctor")
    assert ran.code == 1
    assert "problem OpenCV: does not load: libGL.so.1" in ran.stdout


def test_project_file_names_the_run(finished: Path) -> None:
    ran = run_command(finished, "doctor", "--json")
    assert json.loads(json.dumps(ran.json["checked"]))["tile files"] == _N_SLIDES
    assert ran.json["installation"]
