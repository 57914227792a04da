"""`mil --adapt lora`: an encoder adapted to each fold, honestly, resumably, and told in the report."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_command
from toy_features import write_labels

from wsi_dino.encoders.adapt import Adapted, AdaptSpec
from wsi_dino.encoders.adapter import read_adapter
from wsi_dino.encoders.base_encoder import BaseEncoder
from wsi_dino.encoders.registry import get_record
from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.evaluation.split import make_folds
from wsi_dino.feature_file import read_provenance
from wsi_dino.mil import adaptation
from wsi_dino.mil.adaptation import Adaptation, adapter_item, learn_adapter
from wsi_dino.mil.training import TrainingSpec
from wsi_dino.pathology.synthetic import write_pyramid
from wsi_dino.run_folder import RunFolder

if importlib.util.find_spec("peft") is None:
    pytest.skip("peft, the extra `lora`, is not installed", allow_module_level=True)

TINY = "timm/test_vit.r160_in1k"
N_SLIDES, N_FOLDS = 12, 3
REQUEST = (
    "mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", "--encoder", TINY, "--adapt", "lora",
    "--adapt-tiles", 3, "--adapt-epochs", 2, "--random-weights", 0, "--allow-random-weights", "--folds", N_FOLDS,
    "--epochs", 3, "--min-epochs", 1, "--hidden-dim", 16, "--attention-dim", 8, "--bootstrap", 100, "--device", "cpu",
)  # fmt: skip
RESULTS = Path("run/mil/ER/timm__test_vit.r160_in1k+lora")


def draw_slides(folder: Path) -> None:
    """Draw slides of which every second one has stripes, and their labels."""
    for number in range(N_SLIDES):
        image = np.random.default_rng(number).normal(0, 18, (600, 600, 3)) + np.array([190, 110, 170])
        if number % 2:
            image[:, ::8] -= 60
        write_pyramid(folder / f"slides/S{number}.tif", np.clip(image, 0, 255).astype(np.uint8), downsamples=(1, 4))
    rows = [(f"S{number}", f"P{number}", ["neg", "pos"][number % 2]) for number in range(N_SLIDES)]
    write_labels(folder / "labels.csv", rows)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labels and a tiled run; copy it before use."""
    folder = tmp_path_factory.mktemp("tiled")
    draw_slides(folder)
    tile = ("tile", "slides", "--run", "run", "--mpp", "native", "--tile-px", 160)
    assert run_command(folder, *tile).code == 0
    return folder


@pytest.fixture(scope="module")
def finished(tiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after `mil --adapt lora`; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    _copy(tiled, folder)
    ran = run_command(folder, *REQUEST)
    assert ran.code == 0, ran.stderr
    assert "at most 144 tiles forward and back" in ran.stderr  # 3 folds, 2 epochs, 8 slides of train and val, 3 tiles
    assert f"{N_FOLDS} of {N_FOLDS} folds learn from 3 tiles" in ran.stderr
    assert "Estimated from 4 tiles on cpu" in ran.stderr
    return folder


def _copy(tiled: Path, folder: Path) -> None:
    shutil.copytree(tiled / "run", folder / "run")
    shutil.copy(tiled / "labels.csv", folder)


def _contents(folder: Path) -> dict[str, bytes]:
    places = (folder / "run/mil", folder / "run/features")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for place in places
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def test_results_have_the_usual_form_and_say_how_the_encoder_was_adapted(finished: Path) -> None:
    results = finished / RESULTS
    metrics = json.loads((results / "metrics.json").read_text())
    assert (metrics["encoder"], metrics["n_slides"], len(metrics["folds"])) == (f"{TINY}+lora", N_SLIDES, N_FOLDS)
    assert metrics["adaptation"]["adapter_rank"] == 8
    assert metrics["adaptation"]["adapter_tiles_of_a_slide"] == 3
    with (results / "predictions.csv").open(newline="") as stream:
        tested = [row["slide_id"] for row in csv.DictReader(stream) if row["subset"] == "test"]
    assert sorted(tested) == sorted(f"S{number}" for number in range(N_SLIDES))
    for fold in range(N_FOLDS):
        assert (results / f"model/fold-{fold}.safetensors").is_file()
        assert read_adapter(results / f"adapter/fold-{fold}").record.trained_on.fold == fold
    page = (results / "report.html").read_text()
    assert "encoder adapted" in page
    assert "slides of test patients were never shown to it" in page
    assert "--adapt lora" in page.split("<pre>")[1]
    assert str(finished) not in page


def test_each_adapter_has_learnt_from_its_folds_own_patients_alone(finished: Path) -> None:
    run = RunFolder(finished / "run")
    with (finished / RESULTS / "splits.csv").open(newline="") as stream:
        splits = list(csv.DictReader(stream))
    for fold in range(N_FOLDS):
        learnt_from = read_adapter(finished / RESULTS / f"adapter/fold-{fold}").record.trained_on.learnt_from
        subset_of = {row["patient_id"]: row["subset"] for row in splits if row["fold"] == str(fold)}
        for number in range(N_SLIDES):
            path = run.features(f"{TINY}+lora-ER-fold-{fold}") / f"S{number}.h5"
            provenance = read_provenance(path)
            is_tested = subset_of[f"P{number}"] == "test"
            assert provenance["adapter_has_seen"] is not is_tested
            assert (provenance["slide"]["fingerprint"] in learnt_from) is not is_tested
            assert provenance["encoder"] == f"{TINY}+lora-ER-fold-{fold}"


def test_repeated_it_does_nothing_and_gives_the_same_bytes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _contents(finished)
    monkeypatch.setattr("wsi_dino.mil.adapted_run.learn_adapter", None)
    monkeypatch.setattr("wsi_dino.encoders.encoder.Encoder.embed", None)
    monkeypatch.setattr("wsi_dino.mil.run.learn_fold", None)
    ran = run_command(finished, *REQUEST)
    assert ran.code == 0, ran.stderr
    assert _contents(finished) == before
    assert run_command(finished, "doctor", "run").code == 0


@pytest.mark.slow
def test_killed_and_repeated_gives_the_same_bytes_as_undisturbed(tiled: Path, finished: Path, tmp_path: Path) -> None:
    _copy(tiled, tmp_path)
    command = [sys.executable, "-m", "wsi_dino.cli", *map(str, REQUEST)]
    # sums over as many threads as here, since the last digits depend on that
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    state = tmp_path / "run/.state" / "adapt-ER-timm__test_vit.r160_in1k+lora"
    deadline = time.monotonic() + 200
    while not list(state.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / RESULTS / "metrics.json").exists()
    ran = run_command(tmp_path, *REQUEST)
    assert ran.code == 0, ran.stderr
    assert _contents(tmp_path) == _contents(finished)


@pytest.mark.slow
def test_workers_of_a_launcher_and_parts_give_the_bytes_of_one_process(
    tiled: Path, finished: Path, tmp_path: Path
) -> None:
    for name in ("launched", "parts"):
        (tmp_path / name).mkdir()
        _copy(tiled, tmp_path / name)
    ran = run_command(tmp_path / "launched", *REQUEST, "--launcher", "local", "--launch-workers", 2)
    assert ran.code == 0, ran.stderr
    assert _contents(tmp_path / "launched") == _contents(finished)
    for part in ("1/2", "2/2"):
        ran = run_command(tmp_path / "parts", *REQUEST, "--shard", part, "--json")
        assert (ran.code, ran.json["failed"]) == (0, 0), ran.stderr
        assert not (tmp_path / "parts" / RESULTS / "metrics.json").exists()
    assert run_command(tmp_path / "parts", *REQUEST).code == 0
    assert _contents(tmp_path / "parts") == _contents(finished)


def test_features_of_an_adapter_are_refused_where_none_would_be_held_out(finished: Path) -> None:
    plain = ("mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", "--allow-random-weights")
    ran = run_command(finished, *plain, "--encoder", f"{TINY}+lora-ER-fold-0")
    assert ran.code == 2
    assert "its adapter has learnt from" in ran.stderr
    assert run_command(finished, *plain).code == 2  # those of folds are not taken for the only encoder


def test_predict_takes_features_of_every_folds_adapter(finished: Path) -> None:
    ran = run_command(finished, "predict", "--run", "run", "--model", RESULTS, "--json")
    assert ran.code == 0, ran.stderr
    assert (ran.json["n_models"], ran.json["n_slides"], ran.json["encoder"]) == (N_FOLDS, N_SLIDES, f"{TINY}+lora")
    assert ran.json["n_seen_in_training"] == N_SLIDES
    rows = {row["slide_id"]: row for row in ran.json["rows"]}
    with (finished / RESULTS / "predictions.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            assert rows[row["slide_id"]][f"fold_{row['fold']}"] == pytest.approx(float(row["score"]), abs=1e-6)


def test_embed_puts_features_of_an_adapter_into_a_folder_of_their_own(
    tiled: Path, finished: Path, tmp_path: Path
) -> None:
    _copy(tiled, tmp_path)
    adapter = finished / RESULTS / "adapter/fold-1"
    embed = ("embed", "--run", "run", "--encoder", TINY, "--random-weights", 0, "--device", "cpu")
    assert run_command(tmp_path, *embed, "--adapter", adapter).code == 0
    assert run_command(tmp_path, *embed, "--adapter", adapter, "--as", "mine").code == 0
    assert run_command(tmp_path, *embed).code == 0
    run = RunFolder(tmp_path / "run")
    assert run.encoders() == ["mine", "timm__test_vit.r160_in1k", "timm__test_vit.r160_in1k+lora-ER-fold-1"]
    heads = {name: read_provenance(run.features(name) / "S0.h5") for name in run.encoders()}
    assert heads["mine"]["adapter"] == read_adapter(adapter).sha256
    assert heads["timm__test_vit.r160_in1k"]["adapter"] is None
    same = run.features(f"{TINY}+lora-ER-fold-1") / "S0.h5"
    assert same.read_bytes() == (finished / same.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--adapt-tiles", 4], "give --adapt lora too"),
        (["--adapt", "lora"], "Give --encoder NAME"),
        (["--adapt", "lora", "--encoder", TINY, "--random-weights", 0], "--allow-random-weights"),
        (["--adapt", "lora", "--encoder", TINY, "--adapt-lr", 0], "--adapt-lr 0"),
        (["--adapt", "lora", "--encoder", TINY, "--pooling", "avg"], "expected a pooling of cls"),
        (["--adapt", "lora", "--encoder", "dinov3-xs"], "Did you mean"),
        (["--adapt", "lora", "--encoder", TINY, "--weights", "none.pth"], "none.pth is not a file"),
        (["--adapt", "lora", "--encoder", "efficientnet-lite0"], "convolutional"),
        (["--adapt", "prefix", "--encoder", TINY], "prefix"),
    ],
)
def test_wrong_requests_say_what_to_do(tiled: Path, tmp_path: Path, arguments: list[object], words: str) -> None:
    _copy(tiled, tmp_path)
    ran = run_command(tmp_path, "mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", *arguments)
    assert ran.code == 2, ran.stdout
    assert words in " ".join(ran.stderr.split())
    assert not (tmp_path / "run/mil").exists()


def test_one_slide_of_two_patients_is_found_before_anything_is_learnt(tiled: Path, tmp_path: Path) -> None:
    _copy(tiled, tmp_path)
    (tmp_path / "slides").mkdir()
    shutil.copy(tiled / "slides/S0.tif", tmp_path / "slides/twin.tif")
    tile = ("tile", "slides", "--run", "run", "--mpp", "native", "--tile-px", 160)
    assert run_command(tmp_path, *tile).code == 0
    with (tmp_path / "labels.csv").open("a") as stream:
        stream.write("twin,P99,neg\n")
    ran = run_command(tmp_path, *REQUEST)
    assert ran.code == 2
    assert "S0 of patient P0 and twin of patient P99 are the same slide" in ran.stderr


# --- what an adapter gets to see ----------------------------------------------------------------


class FakeTiles:
    """Tiles that note which slides were read."""

    def __init__(self, slide_ids: Sequence[str]) -> None:
        self._slide_ids, self.read_slides = slide_ids, set()

    def rows(self) -> dict[str, dict[str, Any]]:
        return {slide_id: {"status": "done", "tiles": 5} for slide_id in self._slide_ids}

    def fingerprints(self, slide_id: str) -> tuple[str, str]:
        return f"content of {slide_id}", f"tiles of {slide_id}"

    def read(self, slide_id: str, indices: Sequence[int]) -> np.ndarray:
        self.read_slides.add(slide_id)
        return np.zeros((len(indices), 8, 8, 3), np.uint8)


def _random_cohort(seed: int) -> Cohort:
    random = np.random.default_rng(seed)
    labels = {f"P{patient}": patient % 2 for patient in range(int(random.integers(12, 30)))}
    owners = [patient for patient in labels for _ in range(int(random.integers(1, 4)))]
    rows = [CohortRow(f"S{n}", owner, str(labels[owner]), labels[owner]) for n, owner in enumerate(owners)]
    return Cohort(tuple(rows), ("0", "1"), "ER")


def _adaptation() -> Adaptation:
    base = BaseEncoder(get_record(TINY), random_weights=0)
    return Adaptation(base, AdaptSpec(epochs=2), TrainingSpec(hidden_dim=8, attention_dim=8), n_tiles=2)


@pytest.mark.parametrize("seed", range(4))
def test_a_slide_of_a_test_patient_never_enters_adapter_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    def only_look(
        backbone: object, record: object, head: object, loss: object, material: Any, *_: object, **__: object
    ):
        bags = [*material.training(0), *material.training(1), *material.validation()]
        assert {bag.label for bag in bags} == {0, 1}
        return Adapted({}, ("a",), (), 0, "fp32")

    monkeypatch.setattr(adaptation, "adapt", only_look)
    cohort = _random_cohort(seed)
    for number, fold in enumerate(make_folds(cohort, 3, seed)):
        tiles = FakeTiles(cohort.slide_ids)
        nothing = lambda *_: None  # noqa: E731
        adapter = learn_adapter(
            cohort, fold, number, _adaptation(), tiles, tmp_path / str(number), "ER", nothing, nothing
        )
        allowed = set(cohort.slides_of((*fold.train, *fold.val)))
        assert tiles.read_slides == allowed
        assert not allowed & set(cohort.slides_of(fold.test))
        assert set(adapter.record.trained_on.learnt_from) == {f"content of {slide_id}" for slide_id in allowed}


def test_an_adapters_fingerprint_does_not_know_the_test_patients() -> None:
    cohort = _random_cohort(0)
    fold = make_folds(cohort, 3, 0).folds[0]
    tiles = FakeTiles(cohort.slide_ids)

    def fingerprint(changed: str) -> str:
        rows = [
            CohortRow(row.slide_id, row.patient_id, row.target, 1 - row.label if row.slide_id == changed else row.label)
            for row in cohort.rows
        ]
        return adapter_item(Cohort(tuple(rows), ("0", "1"), "ER"), fold, 0, _adaptation(), "sha", tiles).fingerprint

    same = fingerprint("no slide")
    assert all(fingerprint(slide_id) == same for slide_id in cohort.slides_of(fold.test))
    assert all(fingerprint(slide_id) != same for slide_id in cohort.slides_of((*fold.train, *fold.val)))


def test_tiles_are_drawn_anew_each_epoch_and_alike_for_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = _random_cohort(1)
    fold = make_folds(cohort, 3, 1).folds[0]
    drawn: list[tuple[str, tuple[int, ...]]] = []

    class Noting(FakeTiles):
        def rows(self) -> dict[str, dict[str, Any]]:
            return {slide_id: {"tiles": 1000} for slide_id in cohort.slide_ids}

        def read(self, slide_id: str, indices: Sequence[int]) -> np.ndarray:
            drawn.append((slide_id, tuple(indices)))
            return super().read(slide_id, indices)

    def draws(bags: Iterator[object]) -> dict[str, tuple[int, ...]]:
        drawn.clear()
        assert list(bags)
        return dict(drawn)

    slides = {"train": cohort.slides_of(fold.train), "val": cohort.slides_of(fold.val)}
    material = adaptation._material(cohort, slides, _adaptation(), 7, Noting(cohort.slide_ids))
    first, second = draws(material.training(0)), draws(material.training(1))
    assert set(first) == set(second) == set(slides["train"])
    assert all(first[slide_id] != second[slide_id] for slide_id in first)
    assert draws(material.training(0)) == first
    assert draws(material.validation()) == draws(material.validation())
