"""`wsi-dino embed` and `import-features` as a user meets them: results, wrong usage, kill -9, two at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command_line import run_command
from PIL import Image

from wsi_dino.feature_file import read_feature_file
from wsi_dino.pathology.synthetic import write_pyramid

ENCODER = "efficientnet-lite0"
TINY = "timm/test_vit.r160_in1k"
_SOME_BATCHES = 20_000  # bytes of journal: more than a header and one tile


def tissue(wh: tuple[int, int], seed: int) -> np.ndarray:
    """Draw something that the segmenter takes for tissue, uint8 ``(height, width, 3)``."""
    noise = np.random.default_rng(seed).normal(0, 18, (wh[1], wh[0], 3))
    return np.clip(np.array([190, 110, 170]) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides in a run, tiled at level 0; copy it before use."""
    folder = tmp_path_factory.mktemp("tiled")
    (folder / "slides").mkdir()
    for number, wh in enumerate(((1400, 1200), (1000, 1700), (700, 700))):
        write_pyramid(folder / "slides" / f"S{number}.tif", tissue(wh, number), downsamples=(1, 4))
    assert run_command(folder, "tile", "slides", "--run", "run", "--mpp", "native").code == 0
    return folder


@pytest.fixture
def project(tiled: Path, tmp_path: Path) -> Path:
    """A copy of the run, beside links to the same slides."""
    shutil.copytree(tiled / "run", tmp_path / "run")
    return tmp_path


def features(project: Path, encoder: str = ENCODER) -> dict[str, bytes]:
    folder = project / "run" / "features" / encoder.replace("/", "__")
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def test_features_come_out_and_a_second_call_keeps_them(project: Path) -> None:
    ran = run_command(project, "embed", "--run", "run", "--encoder", ENCODER, "--json")
    assert ran.code == 0, ran.stderr
    assert set(ran.json) == {"command", "run", "encoders", "load", "rows"}
    summary = ran.json["encoders"][ENCODER]
    n_tiles = sum(row["tiles"] for row in ran.json["rows"])
    assert (summary["done"], summary["failed"], summary["tiles"], summary["tiles_encoded"]) == (3, 0, n_tiles, n_tiles)
    assert summary["limited_by"] in ("reading", "encoding", "writing")
    before = features(project)
    assert sorted(before) == ["S0.h5", "S1.h5", "S2.h5"]
    again = run_command(project, "embed", "--run", "run", "--encoder", ENCODER)
    assert again.code == 0
    assert "(3 of them before)" in again.stderr
    assert features(project) == before
    file = read_feature_file(project / "run" / "features" / ENCODER / "S0.h5", verify=True)
    with h5py.File(project / "run" / "tiles" / "S0.h5") as tiles:
        assert (file.coords == tiles["coords"][()]).all()
    assert file.features.shape[1] == 1280
    assert file.features.dtype == np.float32


def test_features_equal_the_encoder_on_openslides_own_pixels(shared_data: Path, tmp_path: Path) -> None:
    import openslide

    from wsi_dino.encoders.loading import load_encoder

    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    assert run_command(tmp_path, "tile", path, "--run", "run", "--mpp", "native").code == 0
    assert run_command(tmp_path, "embed", "--run", "run", "--encoder", ENCODER).code == 0
    file = read_feature_file(tmp_path / "run" / "features" / ENCODER / f"{path.stem}.h5")
    with openslide.OpenSlide(path) as slide:
        tiles = [np.asarray(slide.read_region((int(x), int(y)), 0, (224, 224)))[..., :3] for x, y in file.coords]
    direct = load_encoder(ENCODER, device="cpu").embed(np.stack(tiles))
    assert len(direct) > 50
    np.testing.assert_array_equal(file.features, direct)


def test_random_weights_and_float16_are_marked_in_the_file(project: Path) -> None:
    options = ("--random-weights", "7", "--store-dtype", "float16", "--pooling", "mean")
    assert run_command(project, "embed", "--run", "run", "--encoder", TINY, *options).code == 0
    file = read_feature_file(project / "run" / "features" / TINY.replace("/", "__") / "S0.h5")
    assert file.provenance["random_weights"] == 7
    assert file.provenance["weights_sha256"] == "random:7"
    assert file.provenance["pooling"] == "mean"
    assert file.features.dtype == np.float16
    ran = run_command(project, "embed", "--run", "run", "--encoder", TINY, *options[:4], "--pooling", "cls")
    assert "3 slides have features of another choice" in ran.stderr


def test_several_encoders_in_one_call_equal_one_at_a_time(project: Path, tiled: Path) -> None:
    both = run_command(
        project, "embed", "--run", "run", "--encoder", ENCODER, "--encoder", TINY, "--pooling", f"{TINY}=cls",
        "--random-weights", "0", "--json",
    )  # fmt: skip
    assert both.code == 0, both.stderr
    assert set(both.json["encoders"]) == {ENCODER, TINY}
    alone = project / "alone"
    shutil.copytree(tiled / "run", alone / "run")
    for encoder, pooling in ((ENCODER, "avg"), (TINY, "cls")):
        run_command(alone, "embed", "--run", "run", "--encoder", encoder, "--pooling", pooling, "--random-weights", "0")
        for slide_id in ("S0", "S1", "S2"):
            name = Path("run/features") / encoder.replace("/", "__") / f"{slide_id}.h5"
            one, other = read_feature_file(project / name), read_feature_file(alone / name)
            assert (one.features == other.features).all()
            assert one.identity == other.identity


def test_the_project_file_gives_run_and_encoder(project: Path) -> None:
    (project / "wsi-dino.yaml").write_text(
        f"slides: nowhere\nrun: run\nembed: {{encoder: {TINY}, random_weights: 1, store_dtype: float16}}\n"
    )
    ran = run_command(project, "embed", "--json")
    assert ran.code == 0, ran.stderr
    assert list(ran.json["encoders"]) == [TINY]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--encoder", "efficientnet-lite"], "Did you mean 'efficientnet-lite0'"),
        (["--encoder", "timm/test_vit.r160_in1k", "--weights", "absent.pth"], "absent.pth is not a file"),
        (["--encoder", ENCODER, "--pooling", "cls"], "expected a pooling of avg, got 'cls'"),
        (["--encoder", ENCODER, "--device", "cuda"], "sees no cuda"),
        (["--encoder", ENCODER, "--precision", "fp16", "--device", "cpu"], "fp16"),
        (["--encoder", ENCODER, "--stain-norm", "macenko"], "--stain-reference"),
        (["--encoder", ENCODER, "--stain-norm", "macenko", "--stain-reference", "absent.png"], "absent.png"),
        (["--encoder", ENCODER, "--weights", "a.pth", "--random-weights", "1"], "exclude each other"),
        (["--encoder", ENCODER, "--encoder", TINY, "--weights", "a.pth"], "NAME=FILE"),
        (["--encoder", ENCODER, "--pooling", "avg", "--pooling", f"{ENCODER}=avg"], "given twice"),
        (["--encoder", ENCODER, "--slides", "nowhere"], "--slides nowhere is not a folder"),
        (["--encoder", ENCODER, "--as", ""], "--as is empty"),
    ],
)  # fmt: skip
def test_wrong_usage_is_said_and_leaves_with_2_before_any_work(project: Path, options: list[str], words: str) -> None:
    import torch

    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    ran = run_command(project, "embed", "--run", "run", "--json", *options)
    assert ran.code == 2
    assert words in ran.json["error"]["message"]
    assert words in ran.stderr
    assert not (project / "run" / "features").exists()


def test_a_run_that_is_not_there_or_not_tiled_leaves_with_2(tmp_path: Path) -> None:
    assert run_command(tmp_path, "embed", "--run", "none", "--encoder", ENCODER).code == 2
    (tmp_path / "bare").mkdir()
    ran = run_command(tmp_path, "embed", "--run", "bare", "--encoder", ENCODER)
    assert ran.code == 2
    assert "wsi-dino tile" in ran.stderr


def test_a_bad_slide_leaves_with_1_and_is_named(project: Path, tiled: Path, tmp_path: Path) -> None:
    row_path = project / "run" / ".state" / "tile" / "S1.json"
    row = json.loads(row_path.read_text())
    row_path.write_text(json.dumps(row | {"path": str(tmp_path / "moved" / "S1.tif")}))
    ran = run_command(project, "embed", "--run", "run", "--encoder", TINY, "--random-weights", "0")
    assert ran.code == 1
    assert "failed: S1" in ran.stderr
    assert "--slides" in ran.stderr
    found = run_command(
        project, "embed", "--run", "run", "--encoder", TINY, "--random-weights", "0", "--slides", tiled / "slides"
    )
    assert found.code == 0


@pytest.mark.slow
def test_stain_normalised_features_are_marked_and_not_mixed_with_plain_ones(project: Path) -> None:
    pytest.importorskip("tiatoolbox")
    from test_stain import EOSIN, HAEMATOXYLIN, phantom

    Image.fromarray(phantom(HAEMATOXYLIN, EOSIN, (1.0, 1.0))).save(project / "reference.png")
    plain = ("embed", "--run", "run", "--encoder", TINY, "--random-weights", "0")
    normed = (*plain, "--stain-norm", "reinhard", "--stain-reference", "reference.png", "--json")
    assert run_command(project, *plain).code == 0
    path = project / "run" / "features" / TINY.replace("/", "__") / "S0.h5"
    before = read_feature_file(path)
    ran = run_command(project, *normed)
    assert ran.code == 0, ran.stderr
    after = read_feature_file(path)
    assert after.provenance["stain_norm"].startswith("reinhard:")
    assert before.provenance["stain_norm"] is None
    assert np.abs(after.features - before.features).max() > 0.01
    assert run_command(project, *normed).json["encoders"][TINY]["slides_kept"] == 3


def _start(project: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wsi_dino.cli", "embed", "--run", "run", "--json", "--device", "cpu", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _journal_bytes(project: Path) -> int:
    total = 0
    for path in (project / "run" / ".state" / "journals").rglob("*.journal"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _kill_in_work(process: subprocess.Popen[str], project: Path, wait_s: float) -> bool:
    """Kill once batches have been stored and `wait_s` has passed; False when it had ended before."""
    before = _journal_bytes(project)
    while process.poll() is None and _journal_bytes(project) < before + _SOME_BATCHES:
        time.sleep(0.002)
    time.sleep(wait_s)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


@pytest.mark.slow
def test_kill_9_at_any_moment_then_the_same_command_gives_the_same_bytes(project: Path, tiled: Path) -> None:
    options = ("--encoder", ENCODER, "--batch-size", "8", "--workers", "1")
    undisturbed = project / "undisturbed"
    shutil.copytree(tiled / "run", undisturbed / "run")
    command = ("embed", "--run", "run", "--device", "cpu", "--json", *options)
    whole = run_command(undisturbed, *command).json["encoders"][ENCODER]
    chance = random.Random(20240901)
    n_kills = sum(_kill_in_work(_start(project, *options), project, chance.random() * 0.5) for _ in range(3))
    assert n_kills >= 1
    ran = run_command(project, *command)
    assert ran.code == 0, ran.stderr
    assert features(project) == features(undisturbed)
    assert not list((project / "run" / ".state" / "journals").rglob("*.journal"))
    last = ran.json["encoders"][ENCODER]
    assert last["tiles"] == whole["tiles"] == whole["tiles_encoded"]
    assert last["tiles_encoded"] < whole["tiles"]


@pytest.mark.slow
def test_a_slide_killed_in_the_middle_goes_on_from_its_journal(project: Path) -> None:
    shutil.rmtree(project / "run" / "tiles")
    for row in (project / "run" / ".state" / "tile").glob("S[12].json"):
        row.unlink()
    slides = json.loads((project / "run" / ".state" / "tile" / "S0.json").read_text())["path"]
    assert run_command(project, "tile", slides, "--run", "run", "--mpp", "native").code == 0
    options = ("--encoder", ENCODER, "--batch-size", "2", "--workers", "1")
    assert _kill_in_work(_start(project, *options), project, 0.0)
    out, _ = _start(project, *options).communicate()
    summary = json.loads(out)["encoders"][ENCODER]
    assert summary["tiles_resumed"] >= 2
    assert summary["tiles_encoded"] + summary["tiles_resumed"] == summary["tiles"]


@pytest.mark.slow
def test_two_processes_at_once_encode_every_slide_once(project: Path) -> None:
    processes = [_start(project, "--encoder", ENCODER, "--workers", "1") for _ in range(2)]
    results: list[dict[str, Any]] = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        results.append(json.loads(out)["encoders"][ENCODER])
    assert all(result["done"] == 3 for result in results)
    assert sum(result["tiles_encoded"] for result in results) == results[0]["tiles"]


@pytest.mark.slow
def test_ctrl_c_leaves_with_130_and_keeps_the_work(project: Path) -> None:
    options = ("--encoder", ENCODER, "--batch-size", "2", "--workers", "1")
    process = _start(project, *options)
    while process.poll() is None and _journal_bytes(project) < 30_000:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert json.loads(out)["exit_code"] == 130
    assert "Traceback" not in err
    out, _ = _start(project, *options).communicate()
    summary = json.loads(out)["encoders"][ENCODER]
    assert summary["done"] == 3
    assert summary["tiles_encoded"] < summary["tiles"]


def test_import_features_ends_with_1_for_a_bad_file_and_2_for_wrong_use(tmp_path: Path) -> None:
    from test_feature_import import _features, write_trident

    for slide_id in ("A", "B"):
        write_trident(tmp_path / "f", slide_id, _features(slide_id))
    ran = run_command(tmp_path, "import-features", "f", "--run", "run", "--encoder", "theirs", "--json")
    assert (ran.code, ran.json["done"]) == (0, 2)
    (tmp_path / "f" / "B.h5").write_bytes(b"cut")
    ran = run_command(tmp_path, "import-features", "f", "--run", "run", "--encoder", "theirs")
    assert ran.code == 1
    assert "failed: B" in ran.stderr
    assert run_command(tmp_path, "import-features", "nowhere", "--run", "run", "--encoder", "theirs").code == 2
