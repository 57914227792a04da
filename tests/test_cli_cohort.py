"""`wsi-dino cohort`: what it writes, says and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cohort_folders import make_bcnb, make_camelyon16, make_camelyon17
from command_line import run_command
from PIL import Image
from toy_features import write_features, write_labels

from wsi_dino.evaluation.cohort import read_cohort
from wsi_dino.pathology.cohorts.cohort_table import cohort_readers
from wsi_dino.pathology.contours import read_contours


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    make_camelyon16(folder / "camelyon16")
    make_camelyon17(folder / "camelyon17")
    make_bcnb(folder / "bcnb")
    return folder


def test_every_reader_explains_itself(tmp_path: Path) -> None:
    assert {"camelyon16", "camelyon17", "bcnb"} <= set(cohort_readers())
    for name in [*cohort_readers(), "check"]:
        page = run_command(tmp_path, "cohort", name, "--help")
        assert page.code == 0
        assert "--json" in page.stdout
    overview = run_command(tmp_path, "cohort", "--help").stdout
    assert all(name in overview for name in cohort_readers())


@pytest.mark.parametrize(("name", "n"), [("camelyon16", 399), ("camelyon17", 464), ("bcnb", 1058)])
def test_whole_download_gives_a_table_that_mil_reads(downloads: Path, tmp_path: Path, name: str, n: int) -> None:
    labels = tmp_path / "new" / "labels.csv"
    ran = run_command(downloads, "cohort", name, name, "--labels", labels, "--json")
    assert ran.code == 0, ran.stderr
    assert (ran.json["n_slides"], ran.json["n_failed"], ran.json["missing"]) == (n, 0, [])
    assert all(check["ok"] for check in ran.json["checks"])
    target = "ER" if name == "bcnb" else "tumor"
    assert len(read_cohort(labels, target)) == n
    with labels.open(newline="") as stream:
        header = next(csv.reader(stream))
    assert header[:4] == ["slide_id", "patient_id", "centre", "cohort"]
    assert header[-2:] == ["path", "note"]
    before = labels.read_bytes()
    assert run_command(downloads, "cohort", name, name, "--labels", labels).code == 0
    assert labels.read_bytes() == before


def test_partial_download_ends_with_1_unless_accepted(tmp_path: Path) -> None:
    make_camelyon16(tmp_path / "c16")
    for path in sorted((tmp_path / "c16/training/normal").iterdir())[:30]:
        path.unlink()
    ran = run_command(tmp_path, "cohort", "camelyon16", "c16", "--labels", "labels.csv")
    assert ran.code == 1
    assert "slides: 369 of 399" in ran.stdout
    assert "missing: training/normal/normal_001.tif\n" in ran.stdout
    assert "and 10 more" in ran.stdout
    assert "30 of 399 slides are absent" in (tmp_path / "labels.csv").read_text()
    accepted = run_command(tmp_path, "cohort", "camelyon16", "c16", "--partial", "--json")
    assert (accepted.code, len(accepted.json["missing"])) == (0, 30)


def test_options_of_a_cohort_reach_its_reader(downloads: Path) -> None:
    ran = run_command(downloads, "cohort", "camelyon17", "camelyon17", "--itc", "negative", "--json")
    assert ran.json["counts"]["tumor"] == {"normal": 354, "tumor": 146}
    assert run_command(downloads, "cohort", "camelyon17", "camelyon17", "--itc", "maybe").code == 2
    wrong = run_command(downloads, "cohort", "bcnb", "bcnb", "--ki67-cut", 0)
    assert (wrong.code, "--ki67-cut 0" in wrong.stderr) == (2, True)


def test_regions_and_own_split_are_written_where_there_are_some(downloads: Path, tmp_path: Path) -> None:
    out, splits = tmp_path / "regions", tmp_path / "own.csv"
    ran = run_command(downloads, "cohort", "bcnb", "bcnb", "--contours-to", out, "--splits", splits)
    assert ran.code == 0, ran.stderr
    assert len(list(out.glob("*.geojson"))) == 21
    assert read_contours(out / "50.geojson").contours[0].tolist() == [[10, 10], [90, 10], [90, 90], [10, 90]]
    assert len(splits.read_text().splitlines()) == 1059
    for option in ("--contours-to", "--splits"):
        refused = run_command(downloads, "cohort", "camelyon16", "camelyon16", option, tmp_path / "x")
        assert refused.code == 2
        assert option in refused.stderr


def test_broken_region_is_listed_and_ends_with_1(tmp_path: Path) -> None:
    make_bcnb(tmp_path / "bcnb")
    (tmp_path / "bcnb/WSIs/100.json").write_text("{}")
    ran = run_command(tmp_path, "cohort", "bcnb", "bcnb", "--contours-to", "out", "--json")
    assert (ran.code, list(ran.json["failed_contours"])) == (1, ["100"])


def test_wrong_folder_and_somebodys_table_are_refused(downloads: Path, tmp_path: Path) -> None:
    for arguments in (("camelyon16", "nowhere"), ("camelyon16", "bcnb"), ("bcnb", "camelyon16")):
        ran = run_command(downloads, "cohort", *arguments)
        assert (ran.code, "Traceback" in ran.stderr) == (2, False)
    own = tmp_path / "mine.csv"
    own.write_text("slide_id,ER\nS1,pos\n")
    ran = run_command(downloads, "cohort", "camelyon16", "camelyon16", "--labels", own)
    assert (ran.code, "other columns" in ran.stderr) == (2, True)
    assert own.read_text() == "slide_id,ER\nS1,pos\n"


def test_check_finds_what_leaks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"S{i}", f"P{i}", ["neg", "pos"][i % 2]) for i in range(6)]
    write_labels(tmp_path / "labels.csv", rows)
    for index in range(6):
        write_features(tmp_path / "run/features/toy" / f"S{index}.h5", False, index)
        noise = np.kron(rng.integers(0, 255, (8, 8)), np.ones((20, 20))).astype(np.uint8)
        picture = Image.fromarray(noise)
        (tmp_path / "run/thumbnails").mkdir(exist_ok=True)
        picture.save(tmp_path / f"run/thumbnails/S{index}.jpg")
        if index == 0:
            first = picture
    assert run_command(tmp_path, "cohort", "check", "labels.csv", "--run", "run").code == 0
    first.rotate(180).resize((120, 120)).save(tmp_path / "run/thumbnails/S3.jpg", quality=60)
    write_features(tmp_path / "run/features/toy/S5.h5", False, 2)
    splits = [(0, f"P{i}", ["train", "val", "test"][i % 3]) for i in range(6)]
    write_labels(tmp_path / "splits.csv", splits, ("fold", "patient_id", "subset"))
    ran = run_command(tmp_path, "cohort", "check", "labels.csv", "--run", "run", "--splits", "splits.csv", "--json")
    assert ran.code == 1
    found = {finding["kind"]: finding for finding in ran.json["findings"]}
    assert found["near-duplicate pictures"]["slides"] == [["S0", "S3"]]
    assert found["identical features"]["slides"] == [["S2", "S5"]]
    assert "In 0 of 1 folds" in found["identical features"]["text"]  # both are tested


def test_check_refuses_folds_with_a_patient_on_two_sides(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.csv", [("S1", "P1", "neg"), ("S2", "P1", "pos")])
    write_labels(tmp_path / "splits.csv", [(0, "S1", "train"), (0, "S2", "test")], ("fold", "slide_id", "subset"))
    ran = run_command(tmp_path, "cohort", "check", "labels.csv", "--splits", "splits.csv", "--json")
    assert ran.code == 2
    assert "patient P1 stands in both train and test" in json.loads(ran.stdout)["error"]["message"]
