"""`paper run` and `paper report`: the whole plan on small copies of every dataset, resumed, killed, used wrongly."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Ran, run_command
from composite_cohort import draw_cohort
from paper_folders import OPTIONS, make_all

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.published.printed_table import read_tables
from wsi_dino.paper.contestants import encoder_of_row, no_code
from wsi_dino.paper.kinds import COMMANDS, KINDS
from wsi_dino.paper.result_file import read_result, result_fingerprint
from wsi_dino.paper.roots import PAPER_DATASETS, PUBLISHED_NAMES, read_roots

pytestmark = pytest.mark.timeout(1800)  # 42 commands in one fixture: minutes, but more on a busy machine
_ENCODER = ("--encoder", "efficientnet-lite0", "--workers", 1)
_FACTORS = {"percent": 100, "share": 1, "bits": 1, "mm": 1}


def _run(folder: Path, roots: Path, *more: object, run: str = "RUN") -> Ran:
    return run_command(folder, "paper", "run", "--data", roots, "--run", run, "--in-process", *_ENCODER, *more)


def _cells(run: Path) -> list[dict[str, str]]:
    with (run / "report.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _source(cell: dict[str, str], metrics: dict[str, Any]) -> Any:
    """Return what a cell shows, read from its file by this test's own knowledge of the files."""
    name = cell["metric"]
    if "voi" in metrics:
        return metrics[{"voi_sum": "voi"}.get(name, name)]
    if "dice" in metrics:
        return metrics[{"hd95": "hd95_mm"}.get(name, name)]["mean"]
    key = {"acc": "accuracy"}.get(name, name)
    if "n_slides" in metrics:
        return metrics["summary"][key]["value"]
    labels = list(metrics["labels"].values())
    return labels[0][key]["value"] if len(labels) == 1 else metrics["summary"][f"{key}_macro"]["value"]


@pytest.fixture(scope="module")  # its tests are one xdist_group: one worker makes the run, once
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything from nothing: all datasets, planned, run, reported."""
    folder = tmp_path_factory.mktemp("paper")
    ran = _run(folder, make_all(folder / "data"), "--encoder", "dinov3-s", "--json")
    statuses = {step["key"]: step["status"] for step in ran.json["steps"]}
    not_done = {key for key, status in statuses.items() if status != "done"}
    assert not_done == {f"autopet2.efficientnet-lite0.{channels}" for channels in ("ct", "pet", "ct+pet")}, ran.stderr
    assert {statuses[key] for key in not_done} == {"partial"}, "a study of the copy lacks its SUV"
    assert ran.code == 1
    assert ran.json["missing_datasets"] == {}
    assert "no weights" in ran.json["missing_encoders"]["dinov3-s"]
    assert len(ran.json["estimates"]) == len(PAPER_DATASETS)
    assert all(estimate["hours"] > 0 and "images/s" in estimate["measured_on"] for estimate in ran.json["estimates"])
    report = run_command(folder, "paper", "report", "--run", "RUN", "--add-encoder", "dinov2-s", "--json")
    assert report.code == 0, report.stderr
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("paper-run")
def test_every_number_is_that_of_the_file_it_names(whole: Path) -> None:
    run = whole / "RUN"
    n_checked = 0
    for cell in _cells(run):
        paths = cell["metrics_json"].split()
        if cell["status"] != "run" or cell["table"] == "1":
            continue
        files = [read_result(run / path) for path in paths]
        assert cell["fingerprint"].split() == [result_fingerprint(content) for content in files]
        found = [_source(cell, content) for content in files]
        value = sum(found) / len(found) * _FACTORS[cell["unit"]]
        assert float(cell["value"]) == pytest.approx(value, rel=1e-9), cell
        if cell["low"]:
            assert float(cell["low"]) <= float(cell["high"])
        n_checked += 1
    assert n_checked > 100


@pytest.mark.slow
@pytest.mark.xdist_group("paper-run")
def test_every_cell_has_a_number_or_says_why_not_and_every_published_one_stands_beside(whole: Path) -> None:
    cells = _cells(whole / "RUN")
    printed = read_tables()
    for number, table in printed.items():
        for row, texts in table.cells.items():
            for column in table.number_columns:
                (cell,) = [c for c in cells if (c["table"], c["row"], c["column"]) == (str(number), row, column.name)]
                assert cell["published"] == texts[column.name]
                assert cell["status"] == "not run", "no encoder of the paper was run"
                assert cell["reason"]
    ours = [cell for cell in cells if cell["encoder"] == "efficientnet-lite0" and cell["table"] not in ("", "1")]
    assert {cell["table"] for cell in ours} == {str(number) for number in range(2, 11)}
    for cell in ours:
        assert cell["status"] == "run" or "not defined" in cell["reason"], cell
    added = {cell["table"] for cell in cells if cell["encoder"] == "dinov2-s"}
    assert added == {str(number) for number in range(1, 11)}


@pytest.mark.slow
@pytest.mark.xdist_group("paper-run")
def test_all_five_figures_and_all_forms_are_there(whole: Path) -> None:
    run = whole / "RUN"
    names = {path.stem for path in (run / "figures").glob("*.svg")}
    assert names == {path.stem for path in (run / "figures").glob("*.png")}
    assert {name.split("-")[1] for name in names} == {"1", "2", "3", "4", "5"}
    assert {f"figure-4-{name}" for name in ("cremi-a", "cremi-b", "cremi-c", "ac34", "wafer4")} <= names
    page = (run / "report.html").read_text(encoding="utf-8")
    assert len(page) < 5_000_000
    assert str(whole) not in page + (run / "paper.json").read_text(encoding="utf-8"), "no path of this machine"
    tex = (run / "report.tex").read_text(encoding="utf-8")
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == page.count("published, ours with interval")
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert all(f"## Table {number}:" in markdown for number in range(1, 11))


@pytest.mark.slow
@pytest.mark.xdist_group("paper-run")
def test_again_only_what_failed_is_tried_and_the_document_is_the_same(whole: Path) -> None:
    run = whole / "RUN"
    before = {name: (run / name).read_bytes() for name in ("paper.json", "report.html", "report.csv", "report.tex")}
    again = _run(whole, whole / "data/ROOTS.yaml", "--encoder", "dinov3-s", "--no-estimate")
    assert again.code == 1
    assert "(3 now)" in again.stdout or "42 commands: 39 done (0 now), 3 not" in again.stdout, again.stdout
    assert run_command(whole, "paper", "report", "--run", "RUN", "--add-encoder", "dinov2-s").code == 0
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.slow
@pytest.mark.xdist_group("paper-run")
def test_a_number_that_was_changed_after_the_run_is_not_shown(whole: Path) -> None:
    path = whole / "RUN/runs/rsna/radiology/rsna/efficientnet-lite0@64/metrics.json"
    content = path.read_bytes()
    changed = json.loads(content)
    changed["labels"]["Pneumonia"]["auc"]["value"] = 0.987654
    path.write_text(json.dumps(changed))
    try:
        report = run_command(whole, "paper", "report", "--run", "RUN", "--json")
        assert report.code == 1
        assert "rsna" in report.json["changed"][0]
        assert "0.988" not in (whole / "RUN/report.html").read_text(encoding="utf-8")
    finally:
        path.write_bytes(content)


def _files(run: Path) -> dict[str, bytes]:
    """Return what must be the same, however often it was killed: all but logs, state and times."""
    kept = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_file() and not name.startswith(("logs/", ".state/")) and "/.state/" not in name:
            if path.name == "metrics.json":
                kept[name] = result_fingerprint(read_result(path)).encode()
            elif path.suffix in (".html", ".csv") and name.startswith("runs/"):
                continue  # they tell running times
            else:
                kept[name] = path.read_bytes()
    return kept


@pytest.mark.slow
def test_killed_at_random_moments_and_repeated_it_ends_with_the_same_files(tmp_path: Path) -> None:
    roots = make_all(tmp_path / "data", ["rsna", "msd-task04", "cremi-a"])
    assert _run(tmp_path, roots, "--no-estimate", run="A").code == 0
    words = ["paper", "run", "--data", str(roots), "--run", "B", "--in-process", "--no-estimate", *map(str, _ENCODER)]
    command = [sys.executable, "-m", "wsi_dino.cli", *words]
    moments = random.Random(0)
    for n_steps in (0, 1, 2):
        running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        while running.poll() is None and len([*(tmp_path / "B/logs").glob("*.log")]) <= n_steps:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 2))
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert _run(tmp_path, roots, "--no-estimate", run="B").code == 0
    for name in "AB":
        assert run_command(tmp_path, "paper", "report", "--run", name).code == 0
    assert _files(tmp_path / "B") == _files(tmp_path / "A")


@pytest.mark.slow
def test_real_sets_run_under_their_own_names(shared_data: Path, tmp_path: Path) -> None:
    slides = draw_cohort(tmp_path / "colon", shared_data / "histology_tiles", 12, 2, 1)
    with (shared_data / "ct_lidc_nodules/index.csv").open() as stream:
        rows = [[f"image/{row['key']}.nii.gz", row["patient_id"], row["Diagnosis"]] for row in csv.DictReader(stream)]
    with (tmp_path / "nodules.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["volume", "patient_id", "Diagnosis"], *rows])
    files = {f"{part}-{what}": f"{part}-{name}.h5" for part in ("train", "test")
             for what, name in (("image", "image"), ("labels", "gt.lzf"))}  # fmt: skip
    content = {
        "nih-subset": {"kind": "chest-xray", "root": str(shared_data / "chest_xray_nih/images"), "options": {
            "chest-xray": {"limit": 60, "labels": "Effusion,Infiltration", "folds": 2}},
            "labels": str(shared_data / "chest_xray_nih/labels.csv")},
        "lidc-nodules": {"kind": "ct", "root": str(shared_data / "ct_lidc_nodules"), "labels": "nodules.csv",
                         "options": {"ct": {"limit": 16, "labels": "Diagnosis=Malign", "folds": 2, "window": "lung"}}},
        "hippocampus": {"kind": "segment", "form": "msd-task04", "root": str(shared_data / "Task04_Hippocampus"),
                        "options": {"segment": {"limit": 4}}},
        "sarcoma-petct": {"kind": "segment", "form": "autopet2", "root": str(shared_data / "petct_sts"),
                          "options": {"segment": {"limit": 4, "channels": ["ct", "pet"]}}},
        "flyem": {"kind": "em", "root": str(shared_data / "em_flyem"), "files": files},
        "colon": {"kind": "slides", "root": str(slides.slides), "labels": str(slides.labels), "target": "tumour",
                  "options": {"mil": {"folds": 2}}},
        "options": {command: options for command, options in OPTIONS.items() if command != "cohort"},
    }  # fmt: skip
    roots = tmp_path / "ROOTS.yaml"
    roots.write_text(yaml.safe_dump(content))
    ran = _run(tmp_path, roots, "--no-estimate", "--json")
    assert ran.code == 0, ran.json["steps"]
    assert run_command(tmp_path, "paper", "report", "--run", "RUN").code == 0
    own = [cell for cell in _cells(tmp_path / "RUN") if not cell["table"]]
    assert {cell["dataset"] for cell in own if cell["status"] == "run"} == set(content) - {"options"}
    page = (tmp_path / "RUN/report.html").read_text(encoding="utf-8")
    assert page.count("no folder for nih14 in ROOTS.yaml") >= 1, "a subset under its own name is not NIH-14"


# quick ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data of two datasets."""
    folder = tmp_path_factory.mktemp("planned")
    make_all(folder, ["rsna", "msd-task04"])
    return folder


def test_a_plan_computes_nothing_and_says_what_it_was_measured_on(planned: Path) -> None:
    ran = _run(planned, planned / "ROOTS.yaml", "--plan", "--table", "2,6", "--json")
    assert ran.code == 0, ran.stderr
    assert [step["key"] for step in ran.json["steps"]] == ["rsna.efficientnet-lite0", "msd-task04.efficientnet-lite0"]
    chest = ran.json["estimates"][0]
    assert chest["forwards"] == chest["items"] == 38, "36 images and two of the unlabelled stage"
    assert "images/s" in chest["measured_on"]
    assert "cores" in chest["measured_on"]
    assert chest["disk_gb"] == pytest.approx(38 * 1280 * 4 / 1e9)
    assert ran.json["totals"]["hours"] == pytest.approx(sum(one["hours"] for one in ran.json["estimates"]))
    assert ran.json["totals"]["not_counted"] == ["training of decoders"]
    assert set(ran.json["missing_datasets"]) == {"nih14", *(f"msd-task0{n}" for n in (1, 2, 3, 5))}
    assert not (planned / "RUN/paper.json").exists()
    assert not (planned / "RUN/runs").exists()


def test_a_plan_says_beside_the_hours_what_is_not_in_them(planned: Path) -> None:
    ran = _run(planned, planned / "ROOTS.yaml", "--plan", "--table", "6", "--encoder", "monai-unet")
    assert "What encoding alone takes" in ran.stdout
    assert "hours are of encoding alone; not in them: training of decoders" in ran.stdout
    assert "1 not_estimated" in ran.stdout, "a network that learns from voxels encodes nothing: no hours, not 0"


def test_a_plan_for_the_eye_shows_each_command_as_it_would_be_typed(planned: Path) -> None:
    ran = _run(planned, planned / "ROOTS.yaml", "--dry-run", "--no-estimate", "--encoder", "monai-unet")
    assert "wsi-dino radiology chest-xray --dataset rsna --root 'DATA[rsna]' --encoder efficientnet-lite0" in ran.stdout
    assert "--model monai-unet" in ran.stdout
    assert "chest-xray --dataset rsna --root 'DATA[rsna]' --encoder monai-unet" not in ran.stdout
    assert "not run: dataset ct-rate: no folder for ct-rate" in ran.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "mapping"),
        ("nih14: nowhere\n", "no folder"),
        ("nih15: .\n", "nih14"),
        ("nih14: {root: ., kind: ct}\n", "chest-xray"),
        ("nih14: {root: ., epochs: 3}\n", "epochs"),
        ("nih14: {root: ., options: {chest: {epochs: 3}}}\n", "chest-xray"),
        ("mine: {root: ., kind: slides}\n", "labels: TABLE.csv"),
        ("mine: {root: ., kind: em, files: {train-image: a}}\n", "train-labels"),
        ("mine: {root: ., kind: chest-xray}\n", "labels"),
    ],
)
def test_a_wrong_roots_file_is_told_and_ends_with_2(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ROOTS.yaml").write_text(content)
    ran = _run(tmp_path, tmp_path / "ROOTS.yaml", "--no-estimate")
    assert ran.code == 2
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) <= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--table", "11"), "1 to 10"),
        (("--table", "two"), "numbers"),
        (("--encoder", "dinov3-z"), "dinov3-s"),
        (("--weights", "dinov3-s"), "NAME=FILE"),
        (("--encoder", "dinov3-s", "--weights", "dinov3-s=absent.pth"), "absent.pth"),
    ],
)
def test_wrong_use_ends_with_2(planned: Path, words: tuple[str, ...], message: str) -> None:
    ran = _run(planned, planned / "ROOTS.yaml", "--no-estimate", *words)
    assert ran.code == 2
    assert message in ran.stderr
    assert run_command(planned, "paper", "report", "--run", "nowhere").code == 2


def test_masks_in_a_download_are_neither_planned_nor_tiled(tmp_path: Path) -> None:
    roots = make_all(tmp_path, ["camelyon16"])
    assert len(list((tmp_path / "camelyon16").rglob("*_mask.tif"))) == 10
    entry = read_roots(roots, COMMANDS)["camelyon16"]
    assert KINDS["slides"].work(entry, "efficientnet-lite0").items == 36
    for path in (tmp_path / "camelyon16").rglob("*.tif"):
        if not path.stem.startswith("tumor_00"):
            path.unlink()
    ran = run_command(tmp_path, "tile", "camelyon16", "--run", "RUN", "--mpp", "native", "--a-t", "0.1", "--json")
    assert (ran.code, ran.json["done"], ran.json["failed"]) == (0, 9, 0), ran.stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "wsi_dino.paper/1", "steps": [], "encoders": null}'])
def test_a_broken_file_of_a_run_is_told_and_written_anew(planned: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN/paper.json").write_text(content)
    words = ("--data", planned / "ROOTS.yaml", "--run", "RUN", "--no-estimate", "--plan")
    for command in (("paper", "report", "--run", "RUN"), ("paper", "run", *words)):
        ran = run_command(tmp_path, *command)
        assert ran.code == 2
        assert "paper.json: broken" in ran.stderr
        assert "with --encoder writes it anew" in ran.stderr
    ran = run_command(tmp_path, "paper", "run", *words, "--encoder", "efficientnet-lite0")
    assert ran.code == 0, ran.stderr
    assert "note: Reading RUN/paper.json: broken" in ran.stderr


def test_each_printed_row_has_an_encoder_or_a_reason() -> None:
    for table in read_tables().values():
        for cells in table.cells.values():
            assert encoder_of_row(cells["method"]) or cells["method"] in no_code(cells["method"])


def test_each_dataset_of_the_tables_has_a_name_and_a_track() -> None:
    datasets = {column.dataset for table in read_tables().values() for column in table.number_columns}
    assert datasets - {"", "MSD"} == set(PUBLISHED_NAMES) - {"BCNB"}
    assert {kind for kind, _ in PAPER_DATASETS.values()} == set(KINDS)


def test_paths_are_taken_from_the_folder_of_the_roots_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "ROOTS.yaml").write_text("nih14: data\noptions: {chest-xray: {epochs: 3}}\n")
    entry = read_roots(tmp_path / "ROOTS.yaml", COMMANDS)["nih14"]
    assert entry.root == tmp_path / "data"
    with pytest.raises(ConfigError, match="no such file"):
        read_roots(tmp_path / "absent.yaml", COMMANDS)


def test_the_pages_roots_file_is_one_and_its_commands_run(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "paper.md").read_text(encoding="utf-8")
    text = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    content = yaml.safe_load(text)
    for given in content.values():
        for name in [given] if isinstance(given, str) else [given[key] for key in ("root",) if key in given]:
            (tmp_path / str(name)).mkdir(parents=True)
    (tmp_path / "clinic.csv").write_text("image,patient_id,Effusion\n")
    (tmp_path / "ROOTS.yaml").write_text(text)
    assert list(read_roots(tmp_path / "ROOTS.yaml", COMMANDS)) == [name for name in content if name != "options"]
    (tmp_path / "small").mkdir()
    roots = make_all(tmp_path / "small", ["rsna"])
    block = next(block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "paper run" in block)
    for line in block.splitlines():
        words = [str(roots) if word == "ROOTS.yaml" else word for word in shlex.split(line)[1:]]
        in_process = ["--in-process", "--no-estimate", "--workers", "1"] if words[1] == "run" else []
        ran = run_command(tmp_path, *words, *in_process)
        assert ran.code == 0, ran.stderr
    assert "dinov3-b" in (tmp_path / "RUN/report.html").read_text(encoding="utf-8")
