"""The demo runs the real commands on drawn slides, and finds what was drawn."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command

from wsi_dino.pathology.demo_cohort import draw_demo_cohort, plan_demo_cohort, tumour_fraction_of_tiles
from wsi_dino.run_folder import RunFolder


def test_patients_do_not_mix_tumour_and_normal() -> None:
    cohort = plan_demo_cohort(Path("demo"), 24)
    by_patient: dict[str, set[bool]] = {}
    for slide in cohort.drawn:
        by_patient.setdefault(slide.patient_id, set()).add(slide.has_tumour)
    assert all(len(kinds) == 1 for kinds in by_patient.values())
    assert len(by_patient) < len(cohort.drawn)  # some have two slides
    assert sum(kinds == {True} for kinds in by_patient.values()) == len(by_patient) // 2


def test_drawing_twice_gives_the_same_files_and_draws_only_what_is_missing(tmp_path: Path) -> None:
    cohort = plan_demo_cohort(tmp_path, 2)
    run = RunFolder(tmp_path / "run")
    assert draw_demo_cohort(cohort, run) == 0
    first = {path: path.read_bytes() for path in [*cohort.slides.iterdir(), *tmp_path.glob("truth/*"), cohort.labels]}
    (cohort.slides / "drawn-02.tif").write_bytes(b"damaged")
    assert draw_demo_cohort(cohort, run) == 1
    assert {path: path.read_bytes() for path in first} == first


def test_truth_marks_tumour_where_it_was_drawn(tmp_path: Path) -> None:
    from wsi_dino.pathology.slide import open_slide
    from wsi_dino.pathology.synthetic import REDUCED_BY

    cohort = plan_demo_cohort(tmp_path, 2)
    draw_demo_cohort(cohort, RunFolder(tmp_path / "run"))
    normal, tumour = cohort.drawn
    assert not cohort.read_truth(normal.slide_id).any()
    truth = cohort.read_truth(tumour.slide_id)
    with open_slide(cohort.slides / f"{tumour.slide_id}.tif") as slide:
        width, height = slide.level_dimensions[0]
        assert truth.shape == (-(-height // REDUCED_BY), -(-width // REDUCED_BY))
        overview, _ = slide.read_overview(truth.shape[1])
    darkness = 255 - overview[: truth.shape[0], : truth.shape[1]].mean(2)
    assert 0.02 < truth.mean() < 0.5
    inside = truth[: darkness.shape[0], : darkness.shape[1]]
    assert darkness[inside].mean() > darkness[~inside].mean() + 50


def test_tumour_fraction_counts_the_share_of_the_tile() -> None:
    truth = np.zeros((20, 20), bool)
    truth[:, 10:] = True
    xy = np.array([[0, 0], [80, 0], [160, 32], [10_000, 10_000]])
    assert tumour_fraction_of_tiles(truth, xy, (160, 160)).tolist() == [0.0, 0.5, 1.0, 0.0]


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ran = run_command(tmp_path, "demo", "--folder", tmp_path)
    assert ran.code == 2
    assert "holds other files" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_too_few_slides_are_refused(tmp_path: Path) -> None:
    assert run_command(tmp_path, "demo", "--slides", "3").code == 2


@pytest.mark.slow
def test_demo_finds_the_drawn_tumours_and_runs_twice(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "demo", "--slides", "15", "--json")
    assert ran.code == 0, ran.stderr
    found = ran.json
    assert found["mil"]["task"] == "tumour"
    localisation = found["attention_against_truth"]
    assert localisation["n_slides"] == sum(slide.has_tumour for slide in plan_demo_cohort(tmp_path, 15).drawn)
    assert localisation["mean_auc"] > 0.8
    assert localisation["top_tile_hits"] >= 0.7 * localisation["n_slides"]
    demo = tmp_path / "wsi-dino-demo"
    assert (tmp_path / found["report"]).read_text().rstrip().endswith("</html>")
    assert len(found["heatmaps"]) == 4
    assert run_command(demo, "doctor", "run").code == 0
    with (demo / "labels.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 15
    results = {path: path.read_bytes() for path in (demo / "run" / "mil").rglob("*") if path.is_file()}
    again = run_command(tmp_path, "demo", "--slides", "15", "--json")
    assert again.code == 0, again.stderr
    assert {path: path.read_bytes() for path in results} == results
