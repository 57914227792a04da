"""`radiology chest-xray|ct --adapt lora`: an encoder learns labels, fold by fold, from training patients alone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chest_folders import picture
from command_line import Ran, run_command
from ct_fixtures import make_fake_ct_rate
from PIL import Image

from wsi_dino.encoders.adapt import AdaptSpec
from wsi_dino.encoders.adapter import read_adapter
from wsi_dino.encoders.base_encoder import BaseEncoder
from wsi_dino.encoders.registry import get_record
from wsi_dino.evaluation.label_difference import label_difference
from wsi_dino.evaluation.label_evaluation import EvaluationSpec, FoldScores
from wsi_dino.evaluation.label_folds import FoldRows
from wsi_dino.evaluation.metrics import auc
from wsi_dino.radiology.adaptation import LabelAdaptation, LabelHead, adapter_item, label_loss
from wsi_dino.radiology.adapted_files import FoldAdapters
from wsi_dino.radiology.chest_adaptation import ImageBags
from wsi_dino.radiology.chest_image import ChestView, read_chest_image
from wsi_dino.radiology.ct_adaptation import draw_slices
from wsi_dino.radiology.datasets.image_set import ImageSet
from wsi_dino.run_folder import RunFolder

if importlib.util.find_spec("peft") is None:
    pytest.skip("peft, the extra `lora`, is not installed", allow_module_level=True)

_ENCODER = ("--encoder", "timm/test_vit", "--random-weights", 0, "--bootstrap", 100, "--device", "cpu")
_ADAPT = ("--adapt", "lora", "--adapt-epochs", 2)
_CHEST = ("radiology", "chest-xray", "--dataset", "discs.csv", "--root", "images", *_ENCODER, "--size", 32,
          "--folds", 2, "--run", "run")  # fmt: skip
_FROZEN, _ADAPTED = "timm__test_vit@32-random-0", "timm__test_vit+lora@32-random-0"


def _draw(folder: Path) -> Path:
    """Draw 24 images of 12 patients; those with the label `disc` have one."""
    (folder / "images").mkdir()
    lines = ["image,patient_id,disc,other"]
    for number in range(24):
        has_disc = number // 2 % 2
        Image.fromarray(picture(number, bool(has_disc))).save(folder / f"images/{number:02d}.png")
        lines.append(f"{number:02d}.png,p{number // 2},{has_disc},{number // 4 % 2 if number % 5 else ''}")
    (folder / "discs.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A folder after `chest-xray --adapt lora`, and what it said; not to be changed."""
    folder = _draw(tmp_path_factory.mktemp("discs"))
    return folder, run_command(folder, *_CHEST, *_ADAPT, "--json")


def _contents(folder: Path) -> dict[str, bytes]:
    """All results but the report, which quotes the command."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "run/radiology").rglob("*"))
        if path.is_file() and path.suffix in (".json", ".csv", ".h5", ".safetensors")
    }


def test_the_adapted_encoder_is_judged_beside_the_frozen_one(finished: tuple[Path, Ran]) -> None:
    folder, ran = finished
    assert ran.code == 0, ran.stderr
    assert "Adapting timm/test_vit (LoRA, rank 8): 2 folds learn from up to" in ran.stderr
    frozen, adapted = ran.json["runs"]
    assert [frozen["encoder"], adapted["encoder"]] == ["timm/test_vit", "timm/test_vit+lora"]
    assert ran.json["labels"] == adapted["labels"]
    assert frozen["protocol"]["adaptation"] is None
    told = adapted["protocol"]["adaptation"]
    assert (told["rank"], told["epochs_at_most"], len(told["epochs_kept"])) == (8, 2, 2)
    assert "training patients alone" in told["how"]
    assert adapted["protocol"]["split_fingerprint"] == frozen["protocol"]["split_fingerprint"]
    beside = adapted["frozen"]
    assert beside["labels"]["disc"]["auc"] == frozen["labels"]["disc"]["auc"]
    less = beside["adapted_less_frozen"]["auc_macro"]
    means = [result["summary"]["auc_macro"]["value"] for result in (adapted, frozen)]
    assert less["value"] == pytest.approx(means[0] - means[1])
    results = folder / "run/radiology/discs" / _ADAPTED
    assert {"metrics.json", "predictions.csv", "report.html", "adapter"} == {path.name for path in results.iterdir()}
    assert "Beside the frozen encoder" in (results / "report.html").read_text()
    assert json.loads((results / "metrics.json").read_text())["labels"] == adapted["labels"]


def test_each_adapter_has_learnt_from_its_folds_training_and_validation_images_alone(
    finished: tuple[Path, Ran],
) -> None:
    folder, _ = finished
    with (folder / f"run/radiology/discs/{_ADAPTED}/predictions.csv").open() as stream:
        rows = [line.split(",")[:2] for line in stream.read().splitlines()[1:]]
    contents = {path.name: read_chest_image(path).sha256 for path in (folder / "images").iterdir()}
    for number in range(2):
        adapter = read_adapter(folder / f"run/radiology/discs/{_ADAPTED}/adapter/fold-{number}")
        tested = {name for fold, name in rows if fold == str(number)}
        assert tested
        assert set(adapter.record.trained_on.learnt_from) == {contents[name] for name in set(contents) - tested}
        assert adapter.record.trained_on.fold == number


def test_repeated_it_does_nothing_and_says_the_same(
    finished: tuple[Path, Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = finished
    before = _contents(folder)
    monkeypatch.setattr("wsi_dino.radiology.adaptation.adapt", None)
    monkeypatch.setattr("wsi_dino.encoders.encoder.Encoder.embed", None)
    again = run_command(folder, *_CHEST, *_ADAPT, "--json")
    assert again.json == ran.json
    assert "Adapting" not in again.stderr
    assert _contents(folder) == before


def test_an_adapter_is_not_judged_by_what_it_has_learnt_from(finished: tuple[Path, Ran], tmp_path: Path) -> None:
    folder, _ = finished
    adapter = folder / f"run/radiology/discs/{_ADAPTED}/adapter/fold-0"
    there = ("--dataset", folder / "discs.csv", "--root", folder / "images", *_ENCODER, "--folds", 2)
    ran = run_command(tmp_path, "radiology", "chest-xray", *there, "--adapter", adapter, "--json")
    assert ran.code == 2
    assert " of the tested items, e.g. " in ran.json["error"]["message"]
    assert "at 32 px" in ran.stderr, "the size that it was learnt at"


@pytest.mark.slow
def test_killed_and_repeated_gives_the_same_bytes(finished: tuple[Path, Ran], tmp_path: Path) -> None:
    # with their times, after which shards are named
    shutil.copytree(finished[0] / "images", tmp_path / "images")
    shutil.copy2(finished[0] / "discs.csv", tmp_path)
    command = [sys.executable, "-m", "wsi_dino.cli", *map(str, (*_CHEST, *_ADAPT))]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first = tmp_path / f"run/radiology/discs/{_ADAPTED}/adapter/fold-0/adapter.json"
    deadline = time.monotonic() + 200
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (first.parents[2] / "metrics.json").exists()
    ran = run_command(tmp_path, *_CHEST, *_ADAPT)
    assert ran.code == 0, ran.stderr
    assert _contents(tmp_path) == _contents(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("track", ["chest-xray", "ct"])
def test_workers_of_a_launcher_give_the_figures_of_one_process(track: str, tmp_path: Path) -> None:
    if track == "chest-xray":
        _draw(tmp_path)
        command: tuple[object, ...] = (*_CHEST, *_ADAPT)
    else:
        make_fake_ct_rate(tmp_path / "data", 10, 6)
        command = ("radiology", "ct", "--dataset", "ct-rate", "--root", "data", *_ENCODER, "--size", 32, "--labels",
                   "Pleural effusion", "--no-pictures", *_ADAPT, "--adapt-slices", 2, "--run", "run")  # fmt: skip
    launched = run_command(tmp_path, *command, "--launcher", "local", "--launch-workers", 2, "--json")
    assert launched.code == 0, launched.stderr
    by_workers = _contents(tmp_path)
    assert [path for path in by_workers if path.endswith("adapter.json")]
    (tmp_path / "run").rename(tmp_path / "launched")
    assert run_command(tmp_path, *command, "--json").json == launched.json
    alone = _contents(tmp_path)
    assert alone.keys() == by_workers.keys()
    # volumes.csv tells seconds
    assert [path for path in alone if alone[path] != by_workers[path] and not path.endswith("volumes.csv")] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--adapt-epochs", 3), "--adapt-epochs is for adapting the encoder"),
        ((*_ADAPT, "--adapter", "x=y"), "--adapt learns adapters"),
        ((*_ADAPT, "--adapt-lr", 0), "--adapt-lr 0"),
        ((*_ADAPT, "--precision", "fp16"), "--precision fp16"),
        ((*_ADAPT, "--encoder", "efficientnet-lite0"), "convolutional"),
    ],
)
def test_wrong_requests_say_what_to_do_before_anything_is_made(
    finished: tuple[Path, Ran], tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    ran = run_command(finished[0], *_CHEST[:-1], tmp_path / "run", *arguments, "--json")
    assert ran.code == 2, ran.stdout
    assert message in ran.json["error"]["message"]
    assert not (tmp_path / "run").exists()


def test_one_picture_of_two_patients_is_found_before_anything_is_learnt(tmp_path: Path) -> None:
    _draw(tmp_path)
    (tmp_path / "images/05.png").write_bytes((tmp_path / "images/23.png").read_bytes())
    ran = run_command(tmp_path, *_CHEST, *_ADAPT, "--folds", 6)  # of two patients, one is tested without the other
    assert ran.code == 2
    assert "hold the same and stand on two sides of a fold" in ran.stderr


def test_volumes_adapt_by_some_slices_and_are_judged_by_all(tmp_path: Path) -> None:
    make_fake_ct_rate(tmp_path / "data", 10, 6)
    command = ("radiology", "ct", "--dataset", "ct-rate", "--root", "data", *_ENCODER, "--size", 32, "--run", "run",
               "--labels", "Pleural effusion", "--no-pictures", *_ADAPT, "--adapt-slices", 2, "--json")  # fmt: skip
    ran = run_command(tmp_path, *command)
    assert ran.code == 0, ran.stderr
    told = ran.json["protocol"]["adaptation"]
    assert (told["slices_of_a_volume"], told["slices_pooled_in_learning"]) == (2, "mean")
    assert "all slices in judging" in told["slices_chosen"]
    assert ran.json["encoder"] == "timm/test_vit+lora"
    beside = ran.json["frozen"]["labels"]["Pleural effusion"]["auc"]
    assert ran.json["runs"][0]["labels"]["Pleural effusion"]["auc"] == beside
    folder = tmp_path / "run/radiology/ct-rate"
    adapter = read_adapter(folder / "timm__test_vit+lora@32-random-0-wide-mean-adapter/fold-0")
    (fold,) = ran.json["protocol"]["folds"]
    assert len(adapter.record.trained_on.learnt_from) == fold["train"]["volumes"] + fold["val"]["volumes"]
    study = (folder / "study-wide-mean-linear/study.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in study[1:]] == [["timm/test_vit", "32"], ["timm/test_vit+lora", "32"]]
    knn = run_command(tmp_path, *command, "--probe", "knn", "--k", 3)
    assert knn.code == 0, knn.stderr
    assert "Adapting" not in knn.stderr, "adapters do not depend on the probe"
    assert "slices/s" not in knn.stderr
    shard = run_command(tmp_path, *command, "--shard", "1/2")
    assert "--shard encodes with the frozen encoder alone" in shard.json["error"]["message"]


# parts -------------------------------------------------------------------------------------------
def test_a_head_starts_at_the_labels_shares_and_learns_what_a_bag_shows() -> None:
    targets = np.array([[1, 0], [1, np.nan], [0, 0], [1, 0]], np.float32)
    head = LabelHead(8, targets, "each")
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.sigmoid(head(vectors)).detach().numpy() == pytest.approx(np.tile([4 / 6, 1 / 5], (4, 1)), abs=1e-6)
    assert LabelHead(8, targets, "mean+std")(vectors).shape == (1, 2)
    assert LabelHead(8, targets, "max")(vectors).shape == (1, 2)


def test_unknown_labels_add_nothing_to_the_loss() -> None:
    logits = torch.tensor([[0.3, -2.0], [1.0, 5.0]], requires_grad=True)
    loss = label_loss(logits, np.array([[1, np.nan], [0, np.nan]]))
    expected = (np.log1p(np.exp(-0.3)) + np.log1p(np.exp(1.0))) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[:, 1].tolist() == [0, 0]


def test_slices_are_drawn_one_of_each_stretch() -> None:
    for n, wanted in ((100, 16), (17, 16), (33, 4)):
        edges = np.arange(wanted + 1) * n // wanted
        draws = [draw_slices(n, wanted, seed) for seed in range(20)]
        for chosen in (*draws, draw_slices(n, wanted, None)):
            assert all(low <= index < high for low, index, high in zip(edges[:-1], chosen, edges[1:], strict=True))
        assert len({tuple(draw) for draw in draws}) > 1 or n == 17
        assert draw_slices(n, wanted, 3) == draw_slices(n, wanted, 3)


def test_an_adapters_fingerprint_does_not_know_the_test_images(tmp_path: Path) -> None:
    base = BaseEncoder(get_record("timm/test_vit"), random_weights=0)
    rows = FoldRows(np.array([0, 1]), np.array([2]), np.array([3]))
    images = ImageSet("x", tmp_path, tuple("abcd"), tuple("abcd"), tuple("abcd"), ("y",), np.zeros((4, 1), np.float32))

    def mark(changed: int | None) -> str:
        targets = np.zeros((4, 1), np.float32)
        contents = list("abcd")
        if changed is not None:
            targets[changed], contents[changed] = 1, "new"
        files = FoldAdapters(RunFolder(tmp_path), tmp_path, "x")
        source = ImageBags(images, ChestView(size_px=32))
        plan = LabelAdaptation(
            files, base, AdaptSpec(), source, ("y",), targets, images.image_ids, contents, [rows]
        )  # fmt: skip
        return adapter_item(plan, 0, "sha").fingerprint

    assert mark(3) == mark(None)
    assert len({mark(changed) for changed in (None, 0, 1, 2)}) == 4


def test_differences_of_auc_are_paired() -> None:
    random = np.random.default_rng(0)
    truth = (random.random((300, 2)) < 0.4).astype(np.float64)
    patients = [f"p{i}" for i in range(300)]

    def fold(noise: float, seed: int) -> FoldScores:
        shared = np.random.default_rng(5).normal(size=truth.shape)
        own = np.random.default_rng(seed).normal(size=truth.shape)
        scores = 1 / (1 + np.exp(-(truth + shared + noise * own)))
        return FoldScores(truth, scores, patients, truth, scores, np.arange(300))

    spec = EvaluationSpec(n_resamples=400)
    one, other = fold(0.0, 1), fold(0.3, 2)
    found: dict[str, Any] = label_difference([one], [other], ("a", "b"), spec)
    for label, name in enumerate("ab"):
        expected = auc(truth[:, label], one.scores[:, label]) - auc(truth[:, label], other.scores[:, label])
        assert found["labels"][name]["value"] == pytest.approx(expected)
        assert found["labels"][name]["low"] <= expected <= found["labels"][name]["high"]
    nothing = label_difference([one], [one], ("a", "b"), spec)["auc_macro"]
    assert (nothing["value"], nothing["low"], nothing["high"]) == (0, 0, 0)
    alone = np.std([auc(truth[i, 0], one.scores[i, 0]) for i in (random.integers(0, 300, 300) for _ in range(200))])
    assert found["labels"]["a"]["high"] - found["labels"]["a"]["low"] < 3 * alone, "narrower than of two apart"
