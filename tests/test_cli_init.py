"""init looks before it writes, and what it writes makes the three commands work as they stand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import run_command
from PIL import Image

from wsi_dino.cli import project_file
from wsi_dino.cli.init import task_name
from wsi_dino.mil.tasks import find_task


def _slides(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(80, 200, (64, 64, 3), np.uint8)).save(folder / f"{name}.png")


def _labels(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Six slides without a resolution; labels with one target, one identifier and one measurement."""
    _slides(tmp_path / "my slides", [f"S{i}" for i in range(6)])
    rows = [
        {
            "slide_id": f"S{i}", "patient_id": f"00{i // 2}", "HER2 status": "Positive" if i % 2 else "Negative",
            "age": f"{40.5 + i}", "constant": "x", "grade": str(1 + i % 3), "no": "yes" if i % 2 else "no",
        }
        for i in range(7)
    ]  # fmt: skip
    _labels(tmp_path / "labels.csv", rows)
    return tmp_path


def test_file_says_what_was_found(project: Path) -> None:
    ran = run_command(project, "init", "my slides", "--labels", "labels.csv")
    assert ran.code == 0, ran.stderr
    written = project_file.ProjectFile.model_validate(yaml.safe_load((project / "wsi-dino.yaml").read_text()))
    assert (written.slides, written.labels) == (Path("my slides"), Path("labels.csv"))
    assert written.tasks == {
        "her2-status": {"target": "HER2 status", "classes": ["Negative", "Positive"]},
        "grade": {"target": "grade", "classes": ["1", "2", "3"]},
        "no": {"target": "no", "classes": ["no", "yes"]},
    }
    assert "S6" in ran.stdout  # the row without a slide
    assert "wsi-dino mil --task her2-status --folds 5" in ran.stdout


def test_proposed_tasks_are_tasks_of_mil(project: Path) -> None:
    run_command(project, "init", "my slides", "--labels", "labels.csv")
    written = project_file.read_project_file(project)
    assert written is not None
    for name in written.tasks:
        assert find_task(name, None, written.tasks).name == name


def test_three_commands_need_no_more_options(project: Path) -> None:
    run_command(project, "init", "my slides", "--labels", "labels.csv")
    ran = run_command(project, "tile", "--json")
    assert ran.code in (0, 1), ran.stderr  # noise has few tiles, but nothing is missing
    assert ran.json["run"] == str(project / "wsi-dino-run")
    assert ran.json["n_slides"] == 6


def test_slides_without_resolution_are_tiled_by_pixels_and_it_says_so(project: Path) -> None:
    ran = run_command(project, "init", "my slides", "--labels", "labels.csv", "--json")
    assert ran.json["n_slides_with_mpp"] == 0
    text = (project / "wsi-dino.yaml").read_text()
    assert yaml.safe_load(text)["tile"] == {"mpp": "native"}
    assert "assume_mpp" in text


def test_real_slides_with_and_without_resolution(shared_data: Path, tmp_path: Path) -> None:
    names = ["CMU-1-Small-Region", "TCGA-CR-7395-01A-01-TS1", "not-there"]
    _labels(tmp_path / "labels.csv", [{"slide_id": n, "er": str(i % 2)} for i, n in enumerate(names)])
    ran = run_command(tmp_path, "init", shared_data / "slides", "--labels", "labels.csv", "--json")
    assert ran.code == 0, ran.stderr
    assert (ran.json["n_slides_with_mpp"], ran.json["n_matched"]) == (2, 2)
    assert ran.json["rows_without_slide"] == ["not-there"]
    content = yaml.safe_load((tmp_path / "wsi-dino.yaml").read_text())
    assert content["tile"] == {"mpp": 0.5}
    assert (tmp_path / content["slides"]).resolve() == (shared_data / "slides").resolve()


def test_existing_file_is_kept_unless_forced(project: Path) -> None:
    (project / "wsi-dino.yaml").write_text("mine: [")  # broken, too
    ran = run_command(project, "init", "my slides", "--labels", "labels.csv")
    assert ran.code == 2
    assert "--force" in ran.stderr
    assert (project / "wsi-dino.yaml").read_text() == "mine: ["
    assert run_command(project, "init", "my slides", "--labels", "labels.csv", "--force").code == 0
    assert project_file.read_project_file(project) is not None


def test_no_id_in_common_shows_both_sides(project: Path) -> None:
    _labels(project / "other.csv", [{"slide_id": f"S{i}.png", "er": str(i % 2)} for i in range(4)])
    ran = run_command(project, "init", "my slides", "--labels", "other.csv")
    assert ran.code == 2
    assert "S0.png" in ran.stderr
    assert "S0, S1" in ran.stderr
    assert not (project / "wsi-dino.yaml").exists()


@pytest.mark.parametrize(
    ("slides", "labels", "named"),
    [("nowhere", "labels.csv", "nowhere"), ("empty", "labels.csv", "empty"), ("my slides", "none.csv", "none.csv")],
)
def test_wrong_input_is_named(project: Path, slides: str, labels: str, named: str) -> None:
    (project / "empty").mkdir()
    ran = run_command(project, "init", slides, "--labels", labels)
    assert ran.code == 2
    assert named in ran.stderr
    assert not (project / "wsi-dino.yaml").exists()


def test_slide_that_does_not_open_is_named_and_stops_nothing(project: Path) -> None:
    (project / "my slides" / "S0.png").write_bytes(b"no picture")
    ran = run_command(project, "init", "my slides", "--labels", "labels.csv", "--json")
    assert ran.code == 0
    assert len(ran.json["unreadable"]) == 1
    assert "S0.png" in ran.json["unreadable"][0]


def test_task_names_are_short_words() -> None:
    assert [task_name(text) for text in ("ER", "HER2 status", "Ki-67 (%)", "核")] == [
        "er",
        "her2-status",
        "ki-67",
        "核",
    ]


@pytest.mark.slow
def test_card_lines_work_literally(tmp_path: Path) -> None:
    """`tile`, `embed --encoder dinov3-s` and `mil --task bcnb-er --folds 5` beside the file that init wrote."""
    rng = np.random.default_rng(0)
    (tmp_path / "slides").mkdir()
    rows = []
    for i in range(20):
        pixels = np.clip(np.array([(225, 150, 190), (180, 90, 160)][i % 2]) + rng.normal(0, 12, (600, 600, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "slides" / f"{i}.jpg")
        rows.append({"slide_id": str(i), "patient_id": f"P{i}", "ER": ("Negative", "Positive")[i % 2]})
    _labels(tmp_path / "labels.csv", rows)
    assert run_command(tmp_path, "init", "slides", "--labels", "labels.csv").code == 0
    text = (tmp_path / "wsi-dino.yaml").read_text()
    # DINOv3's weights cannot be fetched here: the file may say so, the lines stay as they are
    text = text.replace("embed:\n", "embed:\n  random_weights: 0\n")
    text = text.replace("mil:\n", "mil:\n  allow_random_weights: true\n  epochs: 2\n")
    (tmp_path / "wsi-dino.yaml").write_text(text)
    for line in ("tile", "embed --encoder dinov3-s", "mil --task bcnb-er --folds 5"):
        ran = run_command(tmp_path, *line.split())
        assert ran.code == 0, (line, ran.stderr)
    assert (tmp_path / "wsi-dino-run" / "mil" / "bcnb-er" / "dinov3-s" / "metrics.json").is_file()
    assert len(list((tmp_path / "wsi-dino-run" / "features" / "dinov3-s").glob("*.h5"))) == 20
