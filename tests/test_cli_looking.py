"""`heatmap`, `localise` and the looking part of `mil` on drawn slides whose truth is known."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
from command_line import Ran, run_command
from looking_run import MIL, RESULTS, make_looking_run
from test_mil_schemes import _cohort
from toy_features import SMALL

from wsi_dino.mil.attention_file import read_attention
from wsi_dino.mil.finished_task import FinishedTask
from wsi_dino.pathology.annotations import annotated_mask, read_annotations


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("looking")
    make_looking_run(folder)
    ran = run_command(folder, "mil", *MIL, "--faithfulness", 6, "--top-tiles", 4, "--heatmaps", 2)
    assert ran.code == 0, ran.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may break; the slides stay where they were tiled."""
    made_by_other_tests = shutil.ignore_patterns("heatmaps", "localisation")
    shutil.copytree(finished / "run", tmp_path / "run", ignore=made_by_other_tests)
    shutil.copytree(finished / "annotations", tmp_path / "annotations")
    shutil.copy(finished / "labels.csv", tmp_path)
    return tmp_path


def _heatmap(folder: Path, *more: object) -> Ran:
    return run_command(folder, "heatmap", RESULTS, "--device", "cpu", *more)


def _localise(folder: Path, *more: object) -> Ran:
    return run_command(folder, "localise", RESULTS, "--annotations", "annotations", *more)


def test_report_shows_tiles_of_each_class_and_faithfulness(finished: Path) -> None:
    page = (finished / RESULTS / "report.html").read_text()
    assert "Tiles that look most and least like square" in page
    assert "Does the score hang on what was attended to?" in page
    assert sorted(path.name for path in (finished / RESULTS / "pictures").iterdir()) == [
        "faithfulness.png", "faithfulness.svg", "top-tiles.png", "top-tiles.svg"
    ]  # fmt: skip


def test_top_tiles_lie_in_the_bright_squares(finished: Path) -> None:
    with (finished / RESULTS / "top_tiles.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 4
    top = [row for row in rows if (row["class"], row["end"]) == ("square", "top")]
    assert [int(row["rank"]) for row in top] == [1, 2, 3, 4]
    for row in top:
        regions = read_annotations(finished / "annotations" / f"{row['slide_id']}.xml")
        mask = annotated_mask(regions, (900, 700), (1.6, 1.6), 1.6)
        x, y = int(row["x"]) + int(row["width"]) // 2, int(row["y"]) + int(row["height"]) // 2
        assert mask[y, x]
    assert all(row["slide_id"] not in {one["slide_id"] for one in top} for row in rows if row["end"] == "bottom"
               and row["class"] == "square" and row["target"] == "none")  # fmt: skip


def test_faithfulness_stands_in_the_metrics_and_is_repeatable(finished: Path) -> None:
    metrics = json.loads((finished / RESULTS / "metrics.json").read_text())
    faithfulness = metrics["faithfulness"]
    assert faithfulness["n_slides"] == len(faithfulness["slides"]) == 6
    # random order keeps the score until the last bright tile is gone, attention takes these first
    assert faithfulness["deletion"]["gain"]["value"] > 0
    before = (finished / RESULTS / "metrics.json").read_bytes()
    assert run_command(finished, "mil", *MIL, "--faithfulness", 6, "--no-report").code == 0
    assert (finished / RESULTS / "metrics.json").read_bytes() == before


def test_without_asking_there_is_no_faithfulness_and_no_report_no_tiles(copy: Path) -> None:
    ran = run_command(copy, "mil", *MIL, "--epochs", 2, "--no-report", "--json")
    assert ran.code == 0, ran.stderr
    assert "faithfulness" not in ran.json
    assert not (copy / RESULTS / "top_tiles.csv").exists()
    assert not list((copy / RESULTS).glob("pictures/*"))


@pytest.mark.parametrize("kind", ["attention", "probability"])
def test_every_format_is_written_and_lies_over_the_square(finished: Path, kind: str) -> None:
    asked = ("--slide", "S01", "--kind", kind, "--format", "png", "--format", "tiff", "--format", "geojson")
    ran = _heatmap(finished, *asked, "--json")
    assert ran.code == 0, ran.stderr
    assert [row["status"] for row in ran.json["slides"]] == ["done"] * 3
    files = {row["format"]: finished / row["file"] for row in ran.json["slides"]}
    where = "heatmaps" if kind == "attention" else "heatmaps/probability/square"
    assert files["png"] == finished / RESULTS / where / "S01.png"
    with openslide.OpenSlide(files["tiff"]) as overlay:
        assert float(overlay.properties["openslide.mpp-x"]) == pytest.approx(1.6)
        assert overlay.dimensions == (900, 700)
    features = json.loads(files["geojson"].read_text())["features"]
    name = "attention rank" if kind == "attention" else "probability square"
    hottest = max(features, key=lambda one: one["properties"]["measurements"][name])
    centre = np.mean(hottest["geometry"]["coordinates"][0][:4], axis=0)
    mask = annotated_mask(read_annotations(finished / "annotations/S01.xml"), (900, 700), (1.6, 1.6), 1.6)
    assert mask[int(centre[1]), int(centre[0])]


def test_attention_picture_is_the_one_that_mil_draws(finished: Path) -> None:
    drawn = sorted((finished / RESULTS / "heatmaps").glob("*.png"))[0]
    before = drawn.read_bytes()
    drawn.unlink()
    assert _heatmap(finished, "--slide", drawn.stem).code == 0
    assert drawn.read_bytes() == before


def test_only_what_is_missing_or_broken_is_drawn_again(copy: Path) -> None:
    assert _heatmap(copy, "--number", 3, "--format", "geojson").code == 0
    files = sorted((copy / RESULTS / "heatmaps").glob("*.geojson"))
    assert len(files) == 3
    files[0].unlink()
    files[1].write_text("{")
    times = [path.stat().st_mtime_ns for path in files[1:]]
    assert _heatmap(copy, "--number", 3, "--format", "geojson").code == 0
    assert files[0].is_file()
    assert [path.stat().st_mtime_ns == time for path, time in zip(files[1:], times, strict=True)] == [False, True]


def test_slide_that_is_gone_is_told_and_found_elsewhere(copy: Path, finished: Path) -> None:
    row = copy / "run/.state/tile/S01.json"
    row.write_text(row.read_text().replace(str(finished / "slides"), "/nowhere"))
    ran = _heatmap(copy, "--slide", "S01", "--slide", "S03", "--json")
    assert ran.code == 1
    assert [one["status"] for one in ran.json["slides"]] == ["failed", "done"]
    assert "no longer where it was tiled" in ran.json["slides"][0]["reason"]
    assert _heatmap(copy, "--slide", "S01", "--format", "geojson").code == 0  # needs no slide
    assert _heatmap(copy, "--slide", "S01", "--slides", finished / "slides").code == 0


def test_features_of_other_tiles_are_refused(copy: Path) -> None:
    shutil.copy(copy / "run/features/toy/S00.h5", copy / "run/features/toy/S02.h5")
    (copy / "run/features/toy/S04.h5").unlink()
    attention = next((copy / RESULTS).glob("attention/*/S06.h5"))
    attention.write_bytes(attention.read_bytes()[:100])
    asked = [word for slide in ("S02", "S04", "S06") for word in ("--slide", slide)]
    ran = _heatmap(copy, *asked, "--kind", "probability", "--json")
    assert ran.code == 1
    reasons = [row["reason"] for row in ran.json["slides"]]
    same = np.array_equal(*(read_attention(next((copy / RESULTS).glob(f"attention/*/{s}.h5"))).coords
                            for s in ("S00", "S02")))  # fmt: skip
    assert same or "other tiles" in reasons[0]
    assert "there is no" in reasons[1]
    assert "missing or broken" in reasons[2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("heatmap", "run"), "there is no metrics.json"),
        (("heatmap", RESULTS, "--slide", "S1"), "Did you mean"),
        (("heatmap", RESULTS, "--slide", "../../S01"), "no model of"),
        (("heatmap", RESULTS, "--fold", 7), "fold 7 tested no slide"),
        (("heatmap", RESULTS, "--class", "square"), "--kind probability"),
        (("heatmap", RESULTS, "--kind", "probability", "--class", "sqare"), "Did you mean 'square'"),
        (("localise", RESULTS, "--annotations", "nowhere"), "no such folder"),
        (("localise", RESULTS, "--annotations", "slides"), "no SLIDE.xml"),
        (("localise", RESULTS, "--annotations", "annotations", "--class", "x"), "Classes: none, square"),
    ],
)
def test_wrong_request_says_what_to_do(finished: Path, arguments: tuple[object, ...], complaint: str) -> None:
    ran = run_command(finished, *arguments)
    assert ran.code == 2, ran.stdout + ran.stderr
    assert complaint in ran.stderr
    assert len(ran.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize("kind", ["probability", "attention"])
def test_drawn_squares_are_found_without_false_alarm(finished: Path, kind: str) -> None:
    ran = _localise(finished, "--kind", kind, "--json")
    assert ran.code == 0, ran.stderr
    froc, game = ran.json["froc"], ran.json["pointing_game"]
    assert (froc["n_lesions"] + froc["n_isolated_tumour_cells"], froc["n_counted"]) == (9, 9)
    assert game["accuracy"] == 1.0
    assert game["chance"] < 0.2
    folder = finished / RESULTS / "localisation" / kind
    assert json.loads((folder / "localisation.json").read_text())["froc"]["score"] == froc["score"]
    assert {path.name for path in folder.iterdir()} == {"localisation.json", "detections.csv", "froc.svg", "froc.png"}
    with (folder / "detections.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["slide_id"] for row in rows if int(row["hit"]) > 0} <= {f"S{i:02}" for i in range(1, 18, 2)}
    assert froc["score"] == 1.0


def test_annotations_of_the_other_class_are_a_message(finished: Path) -> None:
    asked = _localise(finished, "--class", "none", "--json")
    assert asked.code == 2
    assert "S01 is annotated, but labelled square" in asked.stderr


def test_pointing_is_told_where_froc_cannot_be(copy: Path) -> None:
    """Without a normal slide nothing says how many false positives are too many; --count-in all does."""
    normal = [word for i in range(0, 18, 2) for word in ("--leave-out", f"S{i:02}")]
    ran = _localise(copy, *normal, "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["froc"]["score"] is None
    assert "--count-in all" in ran.json["froc"]["note"]
    assert ran.json["pointing_game"]["accuracy"] == 1.0
    assert "no FROC" in _localise(copy, *normal).stdout
    assert _localise(copy, *normal, "--count-in", "all", "--json").json["froc"]["score"] == 1.0


def test_slides_that_cannot_count_are_left_out_and_named(copy: Path) -> None:
    (copy / "annotations/S03.xml").unlink()
    (copy / "annotations/S05.xml").write_text("broken")
    shutil.copy(copy / "annotations/S01.xml", copy / "annotations/S02.xml")
    (copy / "run/tiles/S07.h5").unlink()
    shutil.copy(copy / "annotations/S01.xml", copy / "annotations/other.xml")
    ran = _localise(copy, "--leave-out", "S09", "--json")
    assert ran.code == 1
    assert ran.json["left_out"] == {
        "S02": "annotated, but labelled none", "S03": "labelled square, but not annotated", "S09": "asked for"
    }  # fmt: skip
    assert sorted(ran.json["failed"]) == ["S05", "S07"]
    assert ran.json["pointing_game"]["n_slides"] == 5
    assert "other" in ran.stderr


def test_results_of_another_request_take_their_overlays_with_them(copy: Path) -> None:
    assert _heatmap(copy, "--number", 1, "--format", "tiff", "--format", "png").code == 0
    assert _heatmap(copy, "--number", 1, "--format", "geojson", "--kind", "probability").code == 0
    assert _localise(copy).code == 0
    assert run_command(copy, "mil", *MIL, "--seed", 5, "--epochs", 2, "--no-report").code == 0
    left = [path.name for path in (copy / RESULTS).rglob("*") if path.suffix in (".tiff", ".geojson") or
            ("localisation" in path.parts and path.is_file())]  # fmt: skip
    assert left == []


def test_results_outside_of_a_run_are_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / RESULTS / "metrics.json", tmp_path)
    ran = run_command(tmp_path, "heatmap", ".")
    assert ran.code == 2
    assert "RUN/mil/TASK/ENCODER" in ran.stderr


def test_finished_task_takes_the_model_that_had_not_seen_the_slide(finished: Path) -> None:
    task = FinishedTask(finished / RESULTS)
    with (finished / RESULTS / "splits.csv").open(newline="") as stream:
        tested = {(row["patient_id"], row["fold"]) for row in csv.DictReader(stream) if row["subset"] == "test"}
    for slide_id in task.rows:
        assert (f"P{int(slide_id[1:])}", str(task.fold_of(slide_id))) in tested
        probabilities = task.tile_probabilities(slide_id)
        attention = task.attention(slide_id)
        assert probabilities.shape == (len(attention.coords), 2)
        logits = np.log(probabilities)
        weighted = attention.attention_weights @ (logits[:, 1] - logits[:, 0])
        assert 1 / (1 + np.exp(-weighted)) == pytest.approx(attention.score, abs=1e-4)


@pytest.mark.parametrize("separate", [True, False])
def test_slides_of_another_cohort_and_several_seeds(tmp_path: Path, separate: bool) -> None:
    _cohort(tmp_path, "run", "A", 40, official=["train"])
    _cohort(tmp_path, "other" if separate else "run", "B", 12, attrimil=["unseen"])
    places = ("--test-labels", "B.csv", *(("--test-run", "other") if separate else ()))
    asked = ("--labels", "A.csv", *places, "--task", "camelyon17-unseen", "--seeds", 2, "--faithfulness", 5, *SMALL)
    ran = run_command(tmp_path, "mil", "--run", "run", *asked, "--top-tiles", 3, "--json")
    assert ran.code == 0, ran.stderr
    assert len({row["slide_id"] for row in ran.json["faithfulness"]["slides"]}) == 5  # none twice
    results = "run/mil/camelyon17-unseen/toy"
    kind = ("--kind", "probability", "--format", "geojson", "--number", 0, "--json")
    there = ("--test-run", "other") if separate else ()
    for fold in (0, 1):
        drawn = run_command(tmp_path, "heatmap", results, *kind, *there, "--fold", fold)
        assert drawn.code == 0, drawn.stderr
        assert [(row["fold"], row["slide_id"][0]) for row in drawn.json["slides"]] == [(fold, "B")] * 12
    if separate:
        lost = run_command(tmp_path, "heatmap", results, *kind, "--fold", 0, "--class", "normal")
        assert lost.code == 1
        assert "--test-run" in lost.json["slides"][0]["reason"]
