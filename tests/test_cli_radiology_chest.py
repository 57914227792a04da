"""`wsi-dino radiology chest-xray` from the command line: real images, published layouts, broken input, kills."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chest_folders import make_fake_nih14, make_fake_rsna, picture
from command_line import Ran, run_command
from PIL import Image
from sklearn.metrics import roc_auc_score

from wsi_dino.encoders.loading import load_encoder
from wsi_dino.evaluation.label_difference import label_difference
from wsi_dino.evaluation.label_evaluation import EvaluationSpec
from wsi_dino.evaluation.label_folds import make_label_folds, rows_of_folds
from wsi_dino.evaluation.linear_probe import LogisticSpec
from wsi_dino.evaluation.probing import probe_folds
from wsi_dino.radiology.chest_features import embed_images
from wsi_dino.radiology.chest_image import ChestView
from wsi_dino.radiology.datasets.image_table import read_image_table
from wsi_dino.radiology.datasets.nih14 import LABELS
from wsi_dino.run_folder import RunFolder

_FAST = ("--bootstrap", 100, "--no-pictures")


def _run(folder: Path, *arguments: object) -> Ran:
    return run_command(folder, "radiology", "chest-xray", "--encoder", "efficientnet-lite0", *_FAST, *arguments)


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of 20 patients; those with the label `disc` have one. One is 16-bit, one RGBA."""
    folder = tmp_path_factory.mktemp("discs")
    (folder / "images").mkdir()
    lines = ["image,patient_id,disc,none,side"]
    for number in range(40):
        has_disc = number // 2 % 2
        grey = picture(number, bool(has_disc))
        image = Image.fromarray(grey.astype(np.uint16) * 256) if number == 4 else Image.fromarray(grey)
        (image.convert("RGBA") if number == 5 else image).save(folder / "images" / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,p{number // 2},{has_disc},0,{'left' if number % 3 else 'right'}")
    (folder / "discs.csv").write_text("\n".join(lines) + "\n")
    return folder


def _of_discs(discs: Path, *arguments: object) -> tuple[object, ...]:
    return ("--dataset", discs / "discs.csv", "--root", discs / "images", "--size", 64, *arguments)


def test_a_table_end_to_end(discs: Path, tmp_path: Path) -> None:
    ran = _run(tmp_path, *_of_discs(discs, "--run", "run", "--json", "--pictures"))
    assert ran.code == 0, ran.stderr
    found = ran.json
    assert set(found) >= {"labels", "summary", "protocol", "conventions", "check", "images"}
    assert found["labels"]["disc"]["auc"]["value"] == 1
    assert found["labels"]["disc"]["prevalence"] == 0.5
    assert found["labels"]["none"]["auc"]["value"] is None
    assert "not defined" in found["labels"]["none"]["auc"]["why"]
    assert "NaN" not in ran.stdout
    folder = tmp_path / "run" / "radiology" / "discs" / "efficientnet-lite0@64"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.csv", "report.html"]
    on_disk = json.loads((folder / "metrics.json").read_text())
    assert all(found[key] == value for key, value in on_disk.items())
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert sorted(row["image"] for row in rows) == [f"{number:02d}.png" for number in range(40)]
    by_fold = {fold: [row for row in rows if row["fold"] == fold] for fold in {row["fold"] for row in rows}}
    aucs = [roc_auc_score([int(r["disc"]) for r in f], [float(r["score_disc"]) for r in f]) for f in by_fold.values()]
    assert np.mean(aucs) == found["labels"]["disc"]["auc"]["value"]
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 3, (
        "contact sheet, patches, and the one label with 20 positives"
    )
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")  # noqa: PT018
    again = _run(tmp_path, *_of_discs(discs, "--run", "run", "--json"))
    assert again.json == found
    assert "images encoded" not in again.stderr


def test_nih_and_rsna_as_published(tmp_path: Path) -> None:
    make_fake_nih14(tmp_path / "nih", 120)
    ran = _run(tmp_path, "--dataset", "nih14", "--root", "nih", "--size", 64, "--run", "run", "--json")
    assert ran.code == 0, ran.stderr
    found = ran.json
    assert found["protocol"]["split"].startswith("official lists")
    assert found["labels"]["Effusion"]["auc"]["value"] > 0.9
    assert found["paper_like"]["rows"][0]["distance"] <= found["paper_like"]["rows"][-1]["distance"]
    (fold,) = found["protocol"]["folds"]
    assert fold["train"]["images"] + fold["val"]["images"] == 90
    assert fold["test"]["images"] == 30
    make_fake_rsna(tmp_path / "rsna", 90)
    ran = _run(tmp_path, "--dataset", "rsna", "--root", "rsna", "--size", 64, "--run", "run", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["labels"]["Pneumonia"]["auc"]["value"] > 0.9
    assert ran.json["paper_like"] is None
    report = tmp_path / "run" / "radiology" / "rsna" / "efficientnet-lite0@64" / "report.html"
    assert "Table 2" in report.read_text()


def test_broken_images_are_rows_of_failure(discs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(discs, folder)
    images = folder / "images"
    whole = (images / "03.png").read_bytes()
    (images / "03.png").write_bytes(whole[:200])
    (images / "07.png").unlink()
    Image.fromarray(np.full((9, 9), 3, np.uint8)).save(images / "09.png")
    ran = _run(tmp_path, *_of_discs(folder, "--run", "run", "--json", "--labels", "disc"))
    assert ran.code == 1
    failures = {row["image"]: row["reason"] for row in ran.json["images"]["failures"]}
    assert set(failures) == {"03.png", "07.png", "09.png"}
    assert "no file" in failures["07.png"]
    assert "every pixel is 3" in failures["09.png"]
    assert ran.json["images"]["used"] == 37
    assert "failed: 03.png" in ran.stderr
    (images / "03.png").write_bytes(whole)
    Image.fromarray(picture(9)).save(images / "09.png")
    ran = _run(tmp_path, *_of_discs(folder, "--run", "run", "--json", "--labels", "disc", "--missing", "skip"))
    assert ran.code == 0
    assert "2 images encoded" in ran.stderr
    assert ran.json["images"]["used"] == 39


@pytest.mark.slow
def test_a_changed_image_is_encoded_anew_a_touched_one_is_not(discs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(discs, folder)
    arguments = _of_discs(folder, "--run", "run", "--labels", "disc")
    assert _run(tmp_path, *arguments).code == 0
    os.utime(folder / "images" / "01.png")
    assert "images encoded" not in _run(tmp_path, *arguments).stderr
    grey = np.asarray(Image.open(folder / "images" / "02.png"))
    Image.fromarray(255 - grey).save(folder / "images" / "02.png")
    assert "1 images encoded" in _run(tmp_path, *arguments).stderr
    (folder / "images" / "06.png").write_bytes(b"junk")
    broken = _run(tmp_path, *arguments, "--json")
    assert broken.code == 1
    assert broken.json["images"]["used"] == 39, "features of what the file held before are not used"
    assert broken.json["images"]["failures"][0]["reason"].endswith("no image of a known format.")
    shutil.copy(discs / "images" / "06.png", folder / "images" / "06.png")
    assert "40 images encoded" in _run(tmp_path, *arguments, "--aspect", "squash").stderr
    again = _run(tmp_path, *arguments)
    assert again.code == 0
    assert "images encoded" not in again.stderr, "the old view and the old content are still there"


def test_a_broken_shard_is_made_again(discs: Path, tmp_path: Path) -> None:
    arguments = _of_discs(discs, "--run", "run", "--labels", "disc", "--json")
    first = _run(tmp_path, *arguments).json
    (shard,) = (tmp_path / "run" / "radiology" / "discs" / "features").glob("*/*.h5")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    again = _run(tmp_path, *arguments)
    assert again.code == 0
    assert "40 images encoded" in again.stderr
    assert again.json == first


def test_only_broken_images_are_an_error(discs: Path, tmp_path: Path) -> None:
    shutil.copytree(discs, tmp_path / "copy")
    for path in (tmp_path / "copy" / "images").iterdir():
        path.write_bytes(b"junk")
    ran = _run(tmp_path, *_of_discs(tmp_path / "copy"))
    assert ran.code == 2
    assert "none of its 40 images could be read" in ran.stderr
    assert "0x" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", 230), "its input side may be 224 px or a multiple of 32 px"),
        (("--labels", "dics"), "Did you mean 'disc'"),
        (("--threshold", "youden"), "expected a number from 0 to 1 or"),
        (("--crop-fraction", "2"), "--crop-fraction: "),
        (("--split", "official"), "has auto, folds"),
        (("--folds", 50), "there are 20 patients only"),
        (("--root", "nowhere"), "is not a folder"),
        (("--dataset", "nih15"), "Did you mean 'nih14'"),
        (("--learning-rate", "-1"), "--learning-rate: "),
        (("--pooling", "cls"), "expected a pooling of avg"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_made(
    arguments: tuple[object, ...], message: str, discs: Path, tmp_path: Path
) -> None:
    ran = _run(tmp_path, *_of_discs(discs, "--run", "run"), *arguments)
    assert ran.code == 2
    assert message in ran.stderr.replace("\n", " ")
    assert len(ran.stderr.strip().splitlines()) <= 5
    assert not list((tmp_path / "run").rglob("metrics.json"))


def test_a_patient_in_two_subsets_is_refused(discs: Path, tmp_path: Path) -> None:
    lines = (discs / "discs.csv").read_text().splitlines()
    rows = [f"{line},{'test' if number % 3 == 0 else 'train'}" for number, line in enumerate(lines[1:])]
    (tmp_path / "t.csv").write_text("\n".join([lines[0] + ",subset", *rows]))
    ran = _run(tmp_path, "--dataset", "t.csv", "--root", discs / "images", "--size", 64)
    assert ran.code == 2
    assert "stands in both train and test" in ran.stderr
    assert _run(tmp_path, "--dataset", "t.csv", "--root", discs / "images", "--size", 64, "--split", "folds").code == 0


def test_files_without_a_row_and_rows_that_stand_twice_are_decided_by_options(discs: Path, tmp_path: Path) -> None:
    lines = (discs / "discs.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join([*lines[:-2], lines[3], lines[4]]) + "\n")
    common = ("--dataset", "t.csv", "--root", discs / "images", "--size", 32, "--labels", "disc", "--json")
    ran = _run(tmp_path, *common)
    assert ran.code == 2
    message = ran.json["error"]["message"]
    assert "'02.png' stands in rows 4 and 40 (2 rows" in message
    assert "--duplicates drop" in message
    ran = _run(tmp_path, *common, "--duplicates", "drop", "--unlisted", "fail")
    assert "2 files are not in the table, e.g. 38.png, 39.png" in ran.json["error"]["message"]
    ran = _run(tmp_path, *common, "--duplicates", "drop")
    assert ran.code == 0, ran.stderr
    assert any("2 rows say what an earlier one says and were dropped" in note for note in ran.json["notes"])
    assert (ran.json["images"]["in_table"], ran.json["images"]["not_in_table"]) == (38, 2)
    (tmp_path / "t.csv").write_text("\n".join([*lines, "02.png,p1,0,0,left"]) + "\n")
    ran = _run(tmp_path, *common, "--duplicates", "drop")
    assert "The rows differ" in ran.json["error"]["message"]


def test_the_authors_crop_is_taken_when_asked(discs: Path, tmp_path: Path) -> None:
    ran = _run(tmp_path, *_of_discs(discs, "--labels", "disc", "--json", "--crop-fraction", "record", "--limit", 20))
    assert ran.json["protocol"]["view"]["crop_fraction"] == 0.875
    assert ran.json["protocol"]["view_in_words"].startswith("middle 0.875 of the image")
    assert ran.json["images"]["used"] == 20


def test_optimism_is_flagged(discs: Path, tmp_path: Path) -> None:
    ran = _run(tmp_path, *_of_discs(discs, "--run", "run", "--labels", "side=left", "--json", "--optimistic"))
    flags = {name: entry["optimistic"] for name, entry in ran.json["conventions"].items()}
    assert flags == {
        "youden-on-validation": False, "fixed": False, "corner-on-validation": False, "f1-on-validation": False,
        "youden-on-test": True, "corner-on-test": True, "f1-on-test": True,
    }  # fmt: skip
    ran = _run(tmp_path, *_of_discs(discs, "--run", "run", "--labels", "disc", "--json", "--threshold", "f1-on-test"))
    assert any(note.startswith("OPTIMISTIC") for note in ran.json["notes"])
    report = tmp_path / "run" / "radiology" / "discs" / "efficientnet-lite0@64" / "report.html"
    assert "OPTIMISTIC: the thresholds were chosen on the test labels" in report.read_text()


# killed, and in two processes ------------------------------------------------------------------
def _study(discs: Path, run: Path) -> list[str]:
    arguments = ["--encoder", "efficientnet-lite0", "--size", "32", "--size", "64", "--labels", "disc,side=left"]
    where = ["--dataset", str(discs / "discs.csv"), "--root", str(discs / "images"), "--run", str(run)]
    return [sys.executable, "-m", "wsi_dino.cli", "radiology", "chest-xray", *where, *arguments, "--bootstrap", "100"]


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def _files(run: Path) -> dict[str, bytes]:
    """All results but the report, which quotes the command."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "radiology").rglob("*"))
        if path.is_file() and path.suffix in (".json", ".csv", ".h5", ".svg", ".png")
    }


@pytest.mark.slow
def test_killed_and_repeated_by_two_processes_it_ends_the_same(discs: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(_study(discs, whole)).wait() == 0
    process = _start(_study(discs, killed))
    deadline = time.monotonic() + 60
    while not list(killed.rglob("metrics.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "radiology" / "discs" / "study.csv").exists()
    two = [_start(_study(discs, killed)) for _ in range(2)]
    assert [one.wait() for one in two] == [0, 0]
    assert _files(killed) == _files(whole)
    assert {"radiology/discs/study.json", "radiology/discs/study.csv"} <= set(_files(whole))


@pytest.mark.slow
def test_a_study_is_a_table_and_a_picture(discs: Path, tmp_path: Path) -> None:
    ran = _run(
        tmp_path, *_of_discs(discs, "--run", "run", "--labels", "disc", "--random-weights", 0, "--size", 32),
        "--encoder", "timm/vit_tiny_patch16_224", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert [(run["encoder"], run["input_px"]) for run in ran.json["runs"]] == [
        ("efficientnet-lite0", 64), ("efficientnet-lite0", 32),
        ("timm/vit_tiny_patch16_224", 64), ("timm/vit_tiny_patch16_224", 32),
    ]  # fmt: skip
    assert all(run["notes"][0].startswith("RANDOM WEIGHTS") for run in ran.json["runs"])
    folder = tmp_path / "run" / "radiology" / "discs"
    rows = list(csv.DictReader((folder / "study.csv").open()))
    assert [row["input_px"] for row in rows] == ["32", "64", "32", "64"]
    for row, line in zip(rows, ran.json["table"], strict=True):
        assert float(row["auc_macro_low"]) <= float(row["auc_macro"]) <= float(row["auc_macro_high"])
        assert float(row["auc_macro"]) == line["auc_macro"]
    svg = (folder / "auc-by-size.svg").read_text()
    assert "timm/vit_tiny_patch16_224" in svg
    assert Image.open(folder / "auc-by-size.png").width > 1000


# real images -----------------------------------------------------------------------------------
@pytest.mark.slow
def test_view_and_sex_of_real_radiographs(shared_data: Path, tmp_path: Path) -> None:
    """By 5-fold patient cross-validation; what random weights give is below."""
    root = shared_data / "chest_xray_nih"
    common = ("--dataset", root / "labels.csv", "--root", root, "--labels", "view=AP,sex=M", "--run", "run", "--json")
    found = _run(tmp_path, *common).json
    assert found["images"]["used"] == 493
    assert found["labels"]["view=AP"]["auc"]["value"] >= 0.95
    assert found["labels"]["sex=M"]["auc"]["value"] >= 0.85


@pytest.mark.slow
def test_findings_of_real_radiographs_are_told_better_than_by_random_weights(shared_data: Path, tmp_path: Path) -> None:
    """A small pretrained ViT, logistic regression, 5-fold by patient: 12 findings with at least 20 positives.

    One seed of random weights here; docs/radiology.md has five, of two networks.
    """
    root = shared_data / "chest_xray_nih"
    weights = shared_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.fp16.safetensors"
    images = read_image_table(root / "labels.csv", root / "images", labels=LABELS)
    folds = rows_of_folds(make_label_folds(images.patient_ids, images.targets), images.patient_ids)
    scored = []
    for origin in ({"weights": weights}, {"random_weights": 0}):
        encoder = load_encoder("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", **origin)
        features = embed_images(RunFolder(tmp_path), images, encoder, ChestView(size_px=224)).features
        targets = images.targets.astype(np.float64)
        scored.append(probe_folds(features, targets, images.patient_ids, folds, LogisticSpec())[0])
    less = label_difference(*scored, LABELS, EvaluationSpec(n_resamples=500))["auc_macro_frequent"]
    assert less["n_labels"] == 12
    assert less["low"] > 0
