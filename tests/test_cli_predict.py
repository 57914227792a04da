"""`wsi-dino predict`: the models of the folds on slides of another run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_command
from toy_features import SMALL, make_run, write_features

from wsi_dino.feature_file import FeatureFile, read_feature_file, write_feature_file
from wsi_dino.mil.checkpoint import load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    make_run(folder, 30)
    request = ("--run", "run", "--labels", "labels.csv", "--target", "ER", "--no-report")
    assert run_command(folder, "mil", *request, *SMALL).code == 0
    return folder / "run" / "mil" / "ER" / "toy"


def _rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "run/predictions/ER/toy/predictions.csv").open(newline="") as stream:
        return {row["slide_id"]: row for row in csv.DictReader(stream)}


def test_score_is_the_mean_probability_of_the_folds(trained: Path, tmp_path: Path) -> None:
    make_run(tmp_path, 6)
    ran = run_command(tmp_path, "predict", "--model", trained, "--run", "run", "--json")
    assert ran.code == 0, ran.stderr
    rows = _rows(tmp_path)
    assert len(rows) == len(ran.json["rows"]) == 6
    thresholds = []
    for slide_id, row in rows.items():
        features = torch.from_numpy(read_feature_file(tmp_path / f"run/features/toy/{slide_id}.h5").features).float()
        mask = torch.ones(1, len(features), dtype=torch.bool)
        scores = []
        for fold in range(5):
            model, config = load_model(trained / f"model/fold-{fold}.safetensors")
            thresholds.append(config.threshold)
            with torch.no_grad():
                scores.append(float(torch.softmax(model(features[None], mask).outputs.double(), 1)[0, 1]))
            assert float(row[f"fold_{fold}"]) == pytest.approx(scores[-1], abs=1e-6)
        assert float(row["score"]) == pytest.approx(np.mean(scores), abs=1e-6)
        assert row["predicted"] == ("Positive" if np.mean(scores) >= np.mean(thresholds[:5]) else "Negative")
    assert ran.json["threshold"] == pytest.approx(np.mean(thresholds[:5]))


@pytest.mark.parametrize("part", ["", "model", "model/fold-2.safetensors"])
def test_models_are_found_by_folder_or_file(trained: Path, tmp_path: Path, part: str) -> None:
    make_run(tmp_path, 2)
    ran = run_command(tmp_path, "predict", "--model", trained / part, "--run", "run", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["n_models"] == (1 if part.endswith("safetensors") else 5)


def test_slides_that_a_model_learnt_from_are_told(trained: Path, tmp_path: Path) -> None:
    make_run(tmp_path, 4)
    write_features(tmp_path / "run/features/toy/new.h5", True, seed=1234)
    (tmp_path / "run/features/toy/S2.h5").rename(tmp_path / "run/features/toy/renamed.h5")
    ran = run_command(tmp_path, "predict", "--model", trained, "--run", "run")
    assert "4 of these slides were in the training" in ran.stdout
    seen = {slide_id: row["seen_in_training"] for slide_id, row in _rows(tmp_path).items()}
    assert seen == {"S0": "True", "S1": "True", "S3": "True", "renamed": "True", "new": "False"}


def test_model_files_may_be_read_by_those_who_may_read_others(trained: Path) -> None:
    model = trained / "model/fold-0.safetensors"
    assert model.stat().st_mode == model.with_suffix(".json").stat().st_mode


def test_same_slides_give_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    make_run(tmp_path, 4)
    contents = []
    for _ in range(2):
        assert run_command(tmp_path, "predict", "--model", trained, "--run", "run").code == 0
        contents.append((tmp_path / "run/predictions/ER/toy/predictions.csv").read_bytes())
    assert contents[0] == contents[1]


def test_bad_slides_are_rows_and_code_1(trained: Path, tmp_path: Path) -> None:
    make_run(tmp_path, 4)
    features = tmp_path / "run/features/toy"
    (features / "S0.h5").write_bytes(b"not a feature file")
    identity = read_feature_file(features / "S1.h5").provenance
    write_feature_file(features / "S1.h5", FeatureFile(np.zeros((0, 8), np.float32), np.zeros((0, 2), int), identity))
    nan = np.full((3, 8), np.nan, np.float32)
    write_feature_file(features / "S2.h5", FeatureFile(nan, np.zeros((3, 2), int), identity))
    ran = run_command(tmp_path, "predict", "--model", trained, "--run", "run", "--json")
    assert ran.code == 1
    assert ran.json["n_failed"] == 3
    rows = _rows(tmp_path)
    assert [rows[f"S{i}"]["status"] for i in range(4)] == ["failed", "empty", "failed", "done"]
    assert "not finite" in rows["S2"]["reason"]
    assert str(tmp_path) not in (tmp_path / "run/predictions/ER/toy/predictions.csv").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "cls"},
        {"weights_sha256": "other"},
        {"stain_norm": "macenko:1"},
        {"embed_dim": 9},
        {"tiles": "224 px at 1.0 um/px"},
    ],
)
def test_features_of_another_making_are_refused(trained: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    make_run(tmp_path, 2)
    write_features(tmp_path / "run/features/toy/S1.h5", True, 1, **changes)
    ran = run_command(tmp_path, "predict", "--model", trained, "--run", "run")
    assert ran.code == 2
    assert next(iter(changes)) in ran.stderr
    assert "S1.h5" in ran.stderr


def test_missing_model_or_features_say_what_to_do(trained: Path, tmp_path: Path) -> None:
    make_run(tmp_path, 2, encoder="toyota")
    ran = run_command(tmp_path, "predict", "--model", "nowhere", "--run", "run")
    assert (ran.code, "nowhere" in ran.stderr) == (2, True)
    ran = run_command(tmp_path, "predict", "--model", trained, "--run", "run")
    assert ran.code == 2
    assert "toyota" in ran.stderr
    assert "wsi-dino embed --encoder toy" in ran.stderr
    (tmp_path / "m.safetensors").write_bytes(b"12345678junk")
    assert run_command(tmp_path, "predict", "--model", "m.safetensors", "--run", "run").code == 2
