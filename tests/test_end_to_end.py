"""The whole job on slides of real tissue with the real commands: tile, embed, mil."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import Ran, run_command
from composite_cohort import CompositeCohort, draw_cohort
from sklearn.metrics import roc_auc_score

ENCODER = "efficientnet-lite0"


@pytest.fixture(scope="module")
def cohort(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> CompositeCohort:
    folder = tmp_path_factory.mktemp("composite")
    drawn = draw_cohort(folder, shared_data / "histology_tiles", n_slides=40, side_tiles=4, n_tumour=4)
    _run(folder, "tile", "slides", "--run", "run")
    _run(folder, "embed", "--run", "run", "--encoder", ENCODER)
    return drawn


def _run(folder: Path, *arguments: object) -> Ran:
    ran = run_command(folder, *arguments)
    assert ran.code == 0, ran.stdout + ran.stderr
    return ran


def _mil(cohort: CompositeCohort, target: str, *more: object) -> tuple[dict[str, object], Path]:
    folder = cohort.labels.parent
    _run(folder, "mil", "--run", "run", "--encoder", ENCODER, "--labels", "labels.csv", "--target", target, *more)
    results = folder / "run" / "mil" / target / ENCODER
    return json.loads((results / "metrics.json").read_text()), results


@pytest.mark.slow
def test_tumour_is_found_and_attended_to(cohort: CompositeCohort) -> None:
    metrics, results = _mil(cohort, "tumour", "--folds", 5, "--heatmaps", 2)
    auc = metrics["summary"]["auc"]
    assert auc["value"] >= 0.95
    assert auc["low"] > 0.5
    assert len(metrics["folds"]) == 5
    assert metrics["n_slides"] == metrics["n_patients"] == 40

    ranked = []
    for path in sorted(results.glob("attention/*/*.h5")):
        tumour_xy = cohort.tumour_xy[path.stem]
        with h5py.File(path) as h5:
            is_tumour = [tuple(xy) in tumour_xy for xy in h5["coords"][()].tolist()]
            attention = h5["attention"][()]
        if tumour_xy:
            ranked.append(roc_auc_score(is_tumour, attention))
    assert len(ranked) == 20
    assert np.mean(ranked) >= 0.9

    report = (results / "report.html").read_text()
    assert f"AUC {auc['value']:.3f}" in report
    assert report.count("data:image/jpeg") > 10
    assert len(list(results.glob("heatmaps/*.png"))) == 2


@pytest.mark.slow
def test_labels_unrelated_to_the_slides_give_an_interval_around_chance(cohort: CompositeCohort) -> None:
    auc = _mil(cohort, "shuffled", "--no-report", "--epochs", 20)[0]["summary"]["auc"]
    assert auc["low"] <= 0.5 <= auc["high"]


@pytest.mark.slow
def test_three_lines_of_the_card(shared_data: Path, tmp_path: Path) -> None:
    draw_cohort(tmp_path, shared_data / "histology_tiles", n_slides=12, side_tiles=3, n_tumour=2)
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text().replace("tumour", "ER"))
    (tmp_path / "wsi-dino.yaml").write_text(
        "slides: slides\nlabels: labels.csv\nembed: {random_weights: 0}\nmil: {allow_random_weights: true}\n"
    )
    lines = ["tile", "embed --encoder dinov3-s", "mil --task bcnb-er --folds 5"]
    ran = [_run(tmp_path, *line.split()) for line in lines][-1]
    results = tmp_path / "wsi-dino-run" / "mil" / "bcnb-er" / "dinov3-s"
    metrics = json.loads((results / "metrics.json").read_text())
    assert (metrics["task"], metrics["encoder"], metrics["n_slides"]) == ("bcnb-er", "dinov3-s", 12)
    assert any("random weights" in warning for warning in metrics["warnings"])
    assert "report.html" in ran.stdout
    assert (results / "report.html").is_file()
