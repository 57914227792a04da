"""`wsi-dino radiology ct` from official files to figures, and used wrongly."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Ran, run_command
from ct_fixtures import chest_hu, make_fake_ct_rate, write_dicom_series, write_nifti

from wsi_dino.evaluation.metrics import auc
from wsi_dino.radiology.datasets.ct_rate import LABELS

_EFFUSION = "Pleural effusion"
# an untrained network of a third of a million weights: what there is to see is a dark or a bright lung
_TINY = ("--encoder", "timm/test_vit", "--random-weights", 0, "--bootstrap", 100)
_LINEAR = "run/radiology/ct-rate/timm__test_vit@160-random-0-wide-mean-linear"


def _ct(folder: Path, *arguments: object) -> Ran:
    return run_command(folder, "radiology", "ct", *_TINY, *arguments)


@pytest.fixture(scope="module")
def rate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rate")
    make_fake_ct_rate(folder / "data", 14, 8)
    return folder


@pytest.fixture(scope="module")
def linear(rate: Path) -> Ran:
    return _ct(rate, "--dataset", "ct-rate", "--root", "data", "--run", "run", "--json")


def test_ct_rate_end_to_end_finds_what_can_be_seen(linear: Ran) -> None:
    assert linear.code == 0, linear.stderr
    result = linear.json
    assert set(result["labels"]) == set(LABELS)
    effusion = result["labels"][_EFFUSION]
    assert effusion["auc"]["value"] > 0.95
    assert effusion["prevalence"] == pytest.approx(5 / 10)
    assert {"value", "low", "high"} <= set(effusion["auc"])
    assert result["images"]["hu"] == {"already": 1, "applied": 24}
    assert result["images"]["left_out"] == {"no chest": 1}
    assert "Hounsfield units of 24 volumes applied" in linear.stderr
    (fold,) = result["protocol"]["folds"]
    assert fold["test"] == {"volumes": 10, "scans": 9, "patients": 8}
    assert fold["train"]["patients"] + fold["val"]["patients"] == 13


def test_ct_clips_figures_are_flagged(linear: Ran) -> None:
    assert linear.json["ct_clip"]["optimistic"] is True
    assert any(note.startswith("OPTIMISTIC") for note in linear.json["notes"])
    assert linear.json["summary"]["auc_macro"]["value"] == pytest.approx(linear.json["ct_clip"]["summary"]["auc"])


def test_predictions_say_what_metrics_say(rate: Path, linear: Ran) -> None:
    folder = rate / _LINEAR
    with (folder / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    truth = np.array([int(row["Emphysema"]) for row in rows])
    score = np.array([float(row["score_Emphysema"]) for row in rows])
    assert auc(truth, score) == pytest.approx(linear.json["labels"]["Emphysema"]["auc"]["value"])
    assert all(row["volume"].startswith("valid_") for row in rows)
    assert json.loads((folder / "metrics.json").read_text())["labels"] == linear.json["labels"]
    page = (folder / "report.html").read_text()
    assert "What the encoder is shown" in page
    assert "Patches as colours" in page
    assert "<script" not in page
    with (folder / "volumes.csv").open() as stream:
        assert {row["hu_state"] for row in csv.DictReader(stream)} == {"applied", "already"}


def test_the_same_command_again_encodes_nothing_and_says_the_same(rate: Path, linear: Ran) -> None:
    folder = rate / _LINEAR
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*") if path.name != "volumes.csv"}
    again = _ct(rate, "--dataset", "ct-rate", "--root", "data", "--run", "run", "--json")
    assert again.json == linear.json
    assert "slices/s" not in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*") if path.name != "volumes.csv"} == before


def test_knn_on_the_same_features(rate: Path, linear: Ran) -> None:
    metrics = ("--metric", "cosine", "--metric", "euclidean")
    ran = _ct(rate, "--dataset", "ct-rate", "--root", "data", "--run", "run", "--probe", "knn", "--k", 1, "--k", 3,
              *metrics, "--labels", f"{_EFFUSION},Emphysema", "--json")  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert "slices/s" not in ran.stderr
    assert ran.json["labels"][_EFFUSION]["auc"]["value"] > 0.95
    (chosen,) = ran.json["protocol"]["chosen"]
    assert chosen["k"] in (1, 3)
    assert len(chosen["on_validation"]) == 8
    assert ran.json["check"] is None


def test_attention_pooling_keeps_slices_and_learns(rate: Path, linear: Ran) -> None:
    ran = _ct(rate, "--dataset", "ct-rate", "--root", "data", "--run", "run", "--pool", "attention", "--labels",
              _EFFUSION, "--limit", 20, "--json")  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert ran.json["labels"][_EFFUSION]["auc"]["value"] > 0.9
    assert ran.json["protocol"]["model"] == "attention over slices"


def test_shards_make_the_features_and_the_whole_judges_them(rate: Path) -> None:
    command = ("--dataset", "ct-rate", "--root", "data", "--run", "parts", "--window", "lung", "--limit", 14)
    first, second = (_ct(rate, *command, "--shard", f"{part}/2", "--json") for part in (1, 2))
    assert [ran.json["volumes"]["done"] for ran in (first, second)] == [7, 7]
    whole = _ct(rate, *command, "--json")
    assert "slices/s" not in whole.stderr
    assert whole.json["images"]["used"] == 14


# tables ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NIfTI and DICOM side by side, one broken in each way, an effusion in every second."""
    folder = tmp_path_factory.mktemp("table")
    random = np.random.default_rng(3)
    rows = []
    for number in range(18):
        hu = chest_hu(random, effusion=bool(number % 2), n_slices=2)
        if number % 3:
            write_nifti(folder / f"data/v{number}.nii.gz", hu, axes=("LPS", "RAS", "PIR")[number % 3])
        else:
            write_dicom_series(folder / f"data/v{number}.nii.gz", hu)
        rows.append([f"v{number}.nii.gz", f"p{number // 2 if number < 4 else number}", number % 2, 10.0 * (number % 2)])
    (folder / "data/v17.nii.gz").write_bytes(b"not a volume")
    nan = chest_hu(random).astype(np.float32)
    nan[0, 0, 0] = np.nan
    write_nifti(folder / "data/v16.nii.gz", nan)
    (folder / "data/v14.nii.gz").unlink()
    with (folder / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["volume", "patient_id", "Effusion", "size_mm"], *rows])
    return folder


def test_a_table_with_failures_is_judged_without_them(table: Path) -> None:
    ran = _ct(
        table, "--dataset", "t.csv", "--root", "data", "--run", "run", "--baseline", "size_mm", "--folds", 3, "--json"
    )
    assert ran.code == 1
    assert ran.json["images"]["failed"] == 3
    reasons = {row["volume"]: row["reason"] for row in ran.json["images"]["failures"]}
    assert "NaN" in reasons["v16"]
    assert "not a NIfTI file" in reasons["v17"]
    assert "no such file" in reasons["v14"]
    assert ran.json["images"]["used"] == 15
    assert ran.json["labels"]["Effusion"]["auc"]["value"] > 0.9
    assert ran.json["baselines"]["size_mm"]["labels"]["Effusion"]["auc"]["value"] == 1.0
    skipped = _ct(
        table, "--dataset", "t.csv", "--root", "data", "--run", "run", "--folds", 3, "--missing", "skip", "--json"
    )
    assert skipped.json["images"]["left_out"] == {"file missing": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "none.csv", "--root", "data"], "expected ct-rate or a table"),
        (["--dataset", "t.csv", "--root", "nowhere"], "is not a folder"),
        (["--dataset", "t.csv", "--root", "data", "--window", "lungs"], "Did you mean 'lung'"),
        (["--dataset", "t.csv", "--root", "data", "--size", 225], "225"),
        (["--dataset", "t.csv", "--root", "data", "--shard", "3/2"], "expected I/N"),
        (["--dataset", "t.csv", "--root", "data", "--labels", "Efusion"], "Did you mean 'Effusion'"),
        (["--dataset", "t.csv", "--root", "data", "--pool", "attention", "--probe", "knn"], "learnt with the labels"),
        (["--dataset", "t.csv", "--root", "data", "--threshold", "best"], "expected a number"),
        (["--dataset", "t.csv", "--root", "data", "--limit", 1], "1 patients only"),
        (["--dataset", "ct-rate", "--root", "data"], "no such file"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(table: Path, arguments: list[object], message: str) -> None:
    ran = _ct(table, *arguments, "--run", "wrong", "--json")
    assert ran.code == 2
    assert message in ran.json["error"]["message"]
    assert ran.json["error"]["message"].count("\n") <= 2


# real data ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_real_nodules_benign_or_malignant(shared_data: Path, tmp_path: Path) -> None:
    """48 real crops; the volume of the nodule alone does better, and stands beside."""
    folder = shared_data / "ct_lidc_nodules"
    with (folder / "index.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (tmp_path / "lidc.csv").open("w", newline="") as stream:
        cells = [
            [f"image/{row['key']}.nii.gz", row["patient_id"], row["Diagnosis"], row["diameter_mm"]] for row in rows
        ]
        csv.writer(stream).writerows([["volume", "patient_id", "Diagnosis", "diameter_mm"], *cells])
    wanted = ("--labels", "Diagnosis=Malign", "--baseline", "diameter_mm", "--limit", 48, "--folds", 3)
    ran = run_command(tmp_path, "radiology", "ct", "--encoder", "efficientnet-lite0", "--dataset", "lidc.csv", "--root",
                      folder, "--run", "run", "--window", "lung", "--pool", "max", *wanted, "--json")  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert ran.json["images"]["hu"] == {"already": 48}
    assert ran.json["labels"]["Diagnosis=Malign"]["auc"]["value"] > 0.5
    assert ran.json["baselines"]["diameter_mm"]["labels"]["Diagnosis=Malign"]["auc"]["value"] > 0.8
