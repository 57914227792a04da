"""`wsi-dino radiology segment` and its neighbours, from folders in public forms to results, also used wrongly."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from command_line import Ran, run_command
from toy_volumes import make_autopet, make_hecktor, make_msd

_ENCODER = ("--encoder", "timm/test_vit.r160_in1k", "--random-weights", 0)
_QUICK = (*_ENCODER, "--views", 1, "--workers", 1, "--folds", 2, "--epochs", 2)

_WHOLE = (*_ENCODER, "--views", 2, "--test-views", 2, "--workers", 1, "--folds", 2, "--epochs", 14)


def _segment(folder: Path, root: Path, *options: object, dataset: str = "msd-task04") -> Ran:
    return run_command(folder, "radiology", "segment", "--dataset", dataset, "--root", root, "--run", "RUN", "--json",
                       *options)  # fmt: skip


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A finished run on drawn cases with two balls each."""
    folder = tmp_path_factory.mktemp("segment")
    make_msd(folder, n_cases=8)
    ran = _segment(folder, folder, *_WHOLE)
    assert ran.code == 0, ran.stderr
    return folder, ran


def test_drawn_balls_are_found_and_results_are_whole(finished: tuple[Path, Ran]) -> None:
    folder, ran = finished
    metrics = ran.json
    assert set(metrics["dice"]["per_class"]) == {"bright", "dark"}
    assert metrics["dice"]["mean"] > max(0.7, metrics["baselines"]["mean-shape"]["dice"]["mean"] + 0.15)
    assert metrics["baselines"]["all-background"]["dice"]["mean"] == 0
    assert metrics["hd95_mm"]["n_valid"] <= metrics["hd95_mm"]["n_total"] == 16
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 1]
    assert "random_state=12345" in metrics["protocol"]["split"]
    assert metrics["provenance"]["versions"]["scipy"] == version("scipy")
    results = Path(folder / metrics["folder"])
    for name in ("cases.csv", "metrics.json", "report.html"):
        assert (results / name).read_bytes() == (folder / "RUN" / name).read_bytes()
    rows = _rows(results / "cases.csv")
    assert len(rows) == 16
    by_case = [
        np.mean([float(r["dice"]) for r in rows if r["case_id"] == case]) for case in {r["case_id"] for r in rows}
    ]
    assert metrics["dice"]["mean"] == pytest.approx(np.mean(by_case))
    page = (results / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<img") >= 9
    assert "weights are random (seed 0)" in page


def test_predictions_lie_on_the_source_grid_and_give_the_rows_dice(finished: tuple[Path, Ran]) -> None:
    folder, ran = finished
    results = folder / ran.json["folder"]
    for row in _rows(results / "cases.csv"):
        name = f"{row['case_id']}.nii.gz"
        predicted = nibabel.load(results / "predictions" / name)
        source = nibabel.load(folder / "Task04_Hippocampus" / "imagesTr" / name)
        truth = nibabel.load(folder / "Task04_Hippocampus" / "labelsTr" / name)
        assert np.array_equal(predicted.affine, source.affine)
        assert predicted.get_data_dtype() == np.uint8
        value = {"bright": 1, "dark": 2}[row["class"]]
        ours, theirs = np.asarray(predicted.dataobj) == value, np.asarray(truth.dataobj) == value
        assert float(row["dice"]) == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))


def test_the_same_command_again_does_nothing_anew(finished: tuple[Path, Ran]) -> None:
    folder, ran = finished
    results = folder / ran.json["folder"]
    kept = [
        results / "metrics.json",
        results / "report.html",
        *results.glob("model/*"),
        *folder.glob("RUN/**/stacks/*/*"),
    ]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept}
    again = _segment(folder, folder, *_WHOLE)
    assert again.json == ran.json
    for path, (content, written) in before.items():
        assert path.read_bytes() == content
        if "stacks" in path.parts or "model" in path.parts:
            assert path.stat().st_mtime_ns == written


def test_another_decoder_uses_the_same_features(finished: tuple[Path, Ran]) -> None:
    folder, _ = finished
    stacks = {path: path.stat().st_mtime_ns for path in folder.glob("RUN/**/stacks/*/*")}
    ran = _segment(folder, folder, *_ENCODER, "--decoder", "linear", "--folds", 2, "--epochs", 1, "--fold", 1)
    assert ran.code == 0, ran.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.glob("RUN/**/stacks/*/*")} == stacks
    assert [fold["fold"] for fold in ran.json["folds"]] == [1]
    page = (folder / ran.json["folder"] / "report.html").read_text()
    assert "Beside the other results of this run" in page
    assert "decoder: conv3d instead of linear; training: 14 epochs" in page
    assert "DINOv3-S</td><td>72.6</td>" in page, "the paper's row"
    assert ran.json["published"][0]["table"] == "Table 6"


def test_predict_gives_what_cross_validation_gave(finished: tuple[Path, Ran]) -> None:
    folder, ran = finished
    results = folder / ran.json["folder"]
    held_out = next(row["case_id"] for row in _rows(results / "cases.csv") if row["fold"] == "0")
    image = folder / "Task04_Hippocampus" / "imagesTr" / f"{held_out}.nii.gz"
    settings = (
        "--random-weights", 0, "--test-views", 2, "--workers", 1, "--output", "out", "--fold", 0, "--json"
    )  # fmt: skip
    done = run_command(folder, "radiology", "segment-predict", results, image, *settings)
    assert done.code == 0, done.stderr
    maps = [nibabel.load(path / f"{held_out}.nii.gz") for path in (folder / "out", results / "predictions")]
    assert np.array_equal(np.asarray(maps[0].dataobj), np.asarray(maps[1].dataobj))


def test_label_maps_of_nnunets_names_have_no_number_of_a_channel(finished: tuple[Path, Ran], tmp_path: Path) -> None:
    folder, ran = finished
    results, images = folder / ran.json["folder"], folder / "Task04_Hippocampus" / "imagesTr"
    settings = ("--random-weights", 0, "--workers", 1, "--fold", 0, "--json")

    def predicted(names: list[str], output: str) -> dict[str, bytes]:
        given = tmp_path / f"given-{output}"
        given.mkdir()
        for number, name in enumerate(names, 1):
            shutil.copy(images / f"hippocampus_{number}.nii.gz", given / f"{name}.nii.gz")
        done = run_command(folder, "radiology", "segment-predict", results, given, "--output", tmp_path / output,
                           *settings)  # fmt: skip
        assert done.code == 0, done.stderr
        return {path.name: nibabel.load(path).get_fdata().tobytes() for path in (tmp_path / output).iterdir()}

    plain = predicted(["a", "b"], "plain")
    assert predicted(["a_0000", "b_0000"], "nnunet") == plain
    # numbers that are no channels of this model stay: scans 0 and 1 are two volumes
    assert set(predicted(["scan_0000", "scan_0001"], "numbered")) == {"scan_0000.nii.gz", "scan_0001.nii.gz"}


def test_predict_refuses_other_weights_and_lists_broken_volumes(finished: tuple[Path, Ran]) -> None:
    folder, ran = finished
    results, images = folder / ran.json["folder"], folder / "Task04_Hippocampus" / "imagesTr"
    wrong = run_command(folder, "radiology", "segment-predict", results, images, "--random-weights", 1, "--output", "o",
                        "--json")  # fmt: skip
    assert wrong.code == 2
    assert "same --weights" in wrong.json["error"]["message"]
    unlearned = run_command(folder, "radiology", "segment-predict", results, images, "--random-weights", 0,
                            "--test-views", 4, "--output", "o", "--json")  # fmt: skip
    assert unlearned.code == 2
    assert "Expected at most 2" in unlearned.json["error"]["message"]
    (folder / "broken.nii.gz").write_bytes((images / "hippocampus_1.nii.gz").read_bytes()[:500])
    one = run_command(folder, "radiology", "segment-predict", results, "broken.nii.gz", images / "hippocampus_1.nii.gz",
                      "--random-weights", 0, "--output", "o", "--json")  # fmt: skip
    assert one.code == 1
    assert [row["status"] for row in one.json["volumes"]] == ["failed", "done"]


def test_a_broken_case_is_a_row_and_the_exit_code_1(tmp_path: Path) -> None:
    task = make_msd(tmp_path, n_cases=8)
    image, label = (task / part / "hippocampus_3.nii.gz" for part in ("imagesTr", "labelsTr"))
    image.write_bytes(image.read_bytes()[:3000])
    (task / "labelsTr" / "hippocampus_5.nii.gz").unlink()
    ran = _segment(tmp_path, tmp_path, *_QUICK)
    assert ran.code == 1
    failed = {
        row["case_id"]: row["message"] for row in _rows(tmp_path / "RUN" / "cases.csv") if row["status"] == "failed"
    }
    assert set(failed) == {"hippocampus_3", "hippocampus_5"}
    assert "truncated" in failed["hippocampus_3"]
    assert ran.json["n_failed"] == 2
    # mended, only the rest is done
    make_msd(tmp_path / "whole", n_cases=8)
    for path in (image, label, task / "labelsTr" / "hippocampus_5.nii.gz"):
        path.write_bytes((tmp_path / "whole" / path.relative_to(tmp_path)).read_bytes())
    assert _segment(tmp_path, tmp_path, *_QUICK).code == 0


def test_hecktor_gives_aggregated_dice_and_counts_what_is_absent(tmp_path: Path) -> None:
    ran = _segment(tmp_path, make_hecktor(tmp_path), *_QUICK, "--hd95-empty", "image_diagonal", dataset="hecktor2022")
    assert ran.code == 0, ran.stderr
    assert set(ran.json["dice_aggregated"]["per_class"]) == {"GTVp", "GTVn"}
    rows = _rows(tmp_path / "RUN" / "cases.csv")
    absent = next(row for row in rows if row["case_id"] == "CHUM-006" and row["class"] == "GTVn")
    assert absent["truth_voxels"] == "0"
    assert "the truth has no GTVn" in absent["remarks"]
    assert "resampled onto the grid" in absent["remarks"]


def test_validation_sets_that_overlap_keep_a_prediction_each(tmp_path: Path) -> None:
    make_msd(tmp_path, n_cases=5)
    ran = _segment(tmp_path, tmp_path, *_QUICK[:-2], "--epochs", 1, "--split", "repeated-holdout", "--folds", 3)
    assert ran.code == 0, ran.stderr
    assert "independent random splits" in ran.json["protocol"]["split"]
    assert len(list((tmp_path / ran.json["folder"] / "predictions").glob("*.fold_*.nii.gz"))) == 3
    assert ran.json["dice"]["n_total"] == 6


@pytest.mark.parametrize("channels", ["pet", "ct+pet"])
def test_autopet_gives_false_volumes_by_patient(tmp_path: Path, channels: str) -> None:
    root = make_autopet(tmp_path)
    ran = _segment(tmp_path, root, *_QUICK, "--channels", channels, "--channels-meet", "late", dataset="autopet2")
    assert ran.code == 1, ran.stderr  # one study lacks its SUV
    metrics = ran.json
    assert metrics["channels"] == channels.split("+")
    assert metrics["false_positive_ml"]["n_total"] == 5
    assert "patients" in metrics["protocol"]["split"]
    assert metrics["protocol"]["training"]["warmup_epochs"] == 1
    assert [failure["case_id"].split("_")[1] for failure in metrics["failures"]] == ["3d"]
    assert metrics["published"][0]["table"] == "Table 10"
    page = (tmp_path / metrics["folder"] / "report.html").read_text()
    assert "unit not stated" in page, "the paper's HD95"
    assert page.count('the slice"') == len(metrics["channels"]), "each channel alone; late never joins them"
    _predict_in_nnunets_form(tmp_path, root, metrics)


def _predict_in_nnunets_form(folder: Path, root: Path, metrics: dict[str, Any]) -> None:
    """Files of one case in a folder are its channels; the same joined by + gives the same label map."""
    source = {"ct": "CTres.nii.gz", "pet": "SUV.nii.gz"}
    study = next(path.parent for path in sorted(root.rglob("SUV.nii.gz")) if (path.parent / "CTres.nii.gz").is_file())
    (folder / "imagesTs").mkdir()
    files = [folder / "imagesTs" / f"case_7_{number:04d}.nii.gz" for number in range(len(metrics["channels"]))]
    for channel, file in zip(metrics["channels"], files, strict=True):
        shutil.copy(study / source[channel], file)
    joined = "+".join(str(study / source[channel]) for channel in metrics["channels"])
    for given, output in ((folder / "imagesTs", "of_folder"), (joined, "of_files")):
        done = run_command(folder, "radiology", "segment-predict", metrics["folder"], given, "--random-weights", 0,
                           "--workers", 1, "--fold", 0, "--output", output, "--json")  # fmt: skip
        assert done.code == 0, done.stderr
    [first], [second] = (list((folder / output).iterdir()) for output in ("of_folder", "of_files"))
    assert first.name == "case_7.nii.gz"
    assert np.array_equal(nibabel.load(first).get_fdata(), nibabel.load(second).get_fdata())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((*_QUICK, "--channels", "pet"), "no channel 'pet'"),
        ((*_QUICK, "--fold", 7), "there are 2 folds"),
        ((*_QUICK, "--limit", 4, "--folds", 5), "need at least 10"),
        ((*_QUICK, "--layers", "2,x"), "numbers separated by commas"),
        ((*_QUICK, "--layers", "99"), "gives none for layers"),
        ((), "--encoder NAME or --model"),
        (("--encoder", "dinov3-z"), "dinov3"),
        ((*_QUICK, "--folds", 40), "at least 40"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, options: tuple[object, ...], reason: str) -> None:
    make_msd(tmp_path, n_cases=5)
    ran = _segment(tmp_path, tmp_path, *options)
    assert ran.code == 2
    assert reason in ran.json["error"]["message"]


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    for dataset, reason in {"msd-task4": "msd-task04", "msd-task04": "dataset.json", "nnunet": "dataset.json",
                            "autopet2": "SUV", "hecktor2022": "imagesTr"}.items():  # fmt: skip
        ran = _segment(tmp_path, tmp_path, *_QUICK, dataset=dataset)
        assert ran.code == 2
        assert reason in ran.json["error"]["message"]


def test_a_volume_of_one_slice_and_one_of_few_voxels_are_segmented(tmp_path: Path) -> None:
    task = make_msd(tmp_path, n_cases=6)
    for number, cut in ((1, np.s_[:, :, 3:4]), (2, np.s_[10:13, 10:12, 3:5])):
        for part in ("imagesTr", "labelsTr"):
            path = task / part / f"hippocampus_{number}.nii.gz"
            image = nibabel.load(path)
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[cut], image.affine), path)
    ran = _segment(tmp_path, tmp_path, *_QUICK)
    assert ran.code == 0, ran.stderr


@pytest.mark.slow
def test_kill_9_in_training_loses_no_epoch(tmp_path: Path) -> None:
    make_msd(tmp_path, n_cases=6)
    options = [*map(str, _QUICK[:-2]), "--epochs", "12", "--fold", "0"]
    command = [sys.executable, "-m", "wsi_dino.cli", "radiology", "segment", "--dataset", "msd-task04", "--root",
               str(tmp_path), "--run", "RUN", "--json", *options]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 300
    while not (found := list(tmp_path.glob("RUN/.state/segment-training*/fold_0.safetensors"))):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert found[0].is_file()
    resumed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    straight = subprocess.run(
        [part if part != "RUN" else "OTHER" for part in command], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    one, other = (json.loads(ran.stdout) for ran in (resumed, straight))
    assert one["dice"] == other["dice"]
    assert one["hd95_mm"] == other["hd95_mm"]


@pytest.mark.slow
def test_a_network_of_monai_runs_on_the_same_folds(tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="MONAI is not installed")
    make_msd(tmp_path, n_cases=6)
    ran = _segment(tmp_path, tmp_path, "--model", "monai-unet", "--folds", 2, "--fold", 0, "--epochs", 1)
    assert ran.code == 0, ran.stderr
    assert ran.json["encoder"] is None
    assert ran.json["decoder"] == "monai-unet"
    assert ran.json["folds"][0]["n_val"] == 3


@pytest.mark.slow
def test_a_small_part_of_the_real_hippocampus(shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.fp16.safetensors"
    ran = _segment(
        tmp_path, shared_data / "Task04_Hippocampus", "--encoder", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "--weights", weights, "--views", 1, "--fold", 0, "--limit", 15, "--epochs", 6, "--patch-mm", 7,
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert ran.json["dice"]["mean"] > 0.55
