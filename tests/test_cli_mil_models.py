"""`wsi-dino mil --model`, `--set`, `--search`, and what other commands make of the results."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from command_line import Ran, run_command
from toy_features import make_run

from wsi_dino.mil.models import get_model, model_names

QUICK = ("--epochs", 2, "--min-epochs", 1, "--bootstrap", 100, "--lr", 0.01, "--folds", 2)
REPORTED = ("clam-sb", "dsmil", "linear-mean")
OTHERS = [name for name in model_names() if name != "abmil"]
_TINY = {"hidden_dim": 16, "attention_dim": 8, "n_landmarks": 8, "n_heads": 4, "kernel": 3, "query_dim": 8}


def _mil(folder: Path, *more: object, report: bool = False) -> Ran:
    quick = () if report else ("--no-report",)
    return run_command(folder, "mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", *QUICK, *quick, *more)


def _metrics(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / "run/mil/ER" / name / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def all_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A run on which every model was trained by one command, and some were then reported."""
    folder = tmp_path_factory.mktemp("models")
    make_run(folder, 12)
    asked = [word for name in model_names() for word in ("--model", name)]
    known = {key for name in model_names() for key in get_model(name).hyperparameters.model_fields}
    tiny = [word for key, value in _TINY.items() if key in known for word in ("--set", f"{key}={value}")]
    ran = _mil(folder, *asked, *tiny, "--json")
    some = [word for name in REPORTED for word in ("--model", name)]
    told = [
        word
        for word in tiny
        if word != "--set" and word.partition("=")[0] in ("hidden_dim", "attention_dim", "query_dim")
    ]
    _mil(folder, *some, *(word for each in told for word in ("--set", each)), report=True)
    return folder, ran


def test_one_command_trains_every_model_and_tells_them_apart(all_models: tuple[Path, Ran]) -> None:
    folder, ran = all_models
    assert ran.code == 0, ran.stderr
    assert [result["model"] for result in ran.json["results"]] == list(model_names())
    assert sorted(path.name for path in (folder / "run/mil/ER").iterdir()) == ["toy", *(f"toy+{n}" for n in OTHERS)]
    for name in OTHERS:
        metrics = _metrics(folder, f"toy+{name}")
        told = metrics["protocol"]["training"]
        wanted = get_model(name).hyperparameters(**{k: v for k, v in _TINY.items() if k in told["options"]})
        assert (metrics["model"], metrics["encoder"]) == (name, "toy")
        assert told["options"] == wanted.model_dump()
        assert metrics["protocol"]["tile_score"] == get_model(name).tile_score
    assert len(_metrics(folder, "toy+linear-mean")["chosen_c"]) == 2
    assert _metrics(folder, "toy")["protocol"]["training"]["hidden_dim"] == 16


@pytest.mark.parametrize("name", REPORTED)
def test_report_names_model_hyperparameters_and_the_command_for_it_alone(
    name: str, all_models: tuple[Path, Ran]
) -> None:
    page = (all_models[0] / f"run/mil/ER/toy+{name}/report.html").read_text()
    record = get_model(name)
    for text in (record.title, record.paper, record.tile_score.partition(",")[0], f"--model {name}"):
        assert text in page.replace("&#39;", "'"), text
    assert [other for other in OTHERS if other != name and f"--model {other}" in page] == []
    for key in record.hyperparameters.model_fields:
        assert key.replace("_", " ") in page or key in ("hidden_dim", "attention_dim"), key
    assert f"<em>toy</em> with <em>{name}</em>" in page
    assert ("no attention" in page) == (not record.has_attention)


@pytest.mark.parametrize("name", model_names())
def test_attention_files_say_what_they_hold(name: str, all_models: tuple[Path, Ran]) -> None:
    results = all_models[0] / "run/mil/ER" / ("toy" if name == "abmil" else f"toy+{name}")
    paths = sorted(results.glob("attention/*/*.h5"))
    assert len(paths) == 12
    with h5py.File(paths[0]) as file:
        assert file.attrs["tile_score"] == get_model(name).tile_score
        assert float(file["attention"][()].sum()) == pytest.approx(1, abs=1e-5)
        assert get_model(name).has_attention or np.ptp(np.log(file["attention"][()])) < 20, "not all but one are 0"
        has = name in {"mean-pool", "linear-mean", "additive-abmil"}
        assert ("contributions" in file) == has
        if has:
            added = file["contributions"][()].sum(0)
            score = 1 / (1 + np.exp(added[0] - added[1]))
            assert score == pytest.approx(file.attrs["score"], abs=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_predict_applies_every_model(name: str, all_models: tuple[Path, Ran]) -> None:
    folder, _ = all_models
    results = f"run/mil/ER/toy+{name}"
    ran = run_command(folder, "predict", "--model", f"{results}/model/fold-1.safetensors", "--run", "run", "--json")
    assert ran.code == 0, ran.stderr
    assert Path(ran.json["table"]).parent.name == f"toy+{name}"
    with (folder / results / "predictions.csv").open(newline="") as stream:
        held_out = {
            r["slide_id"]: float(r["score"])
            for r in csv.DictReader(stream)
            if (r["fold"], r["subset"]) == ("1", "test")
        }
    scores = {row["slide_id"]: row["score"] for row in ran.json["rows"]}
    assert {slide: scores[slide] for slide in held_out} == pytest.approx(held_out, abs=1e-6)


def test_models_of_two_kinds_are_no_ensemble(all_models: tuple[Path, Ran], tmp_path: Path) -> None:
    for number, name in enumerate(("clam-sb", "max-pool")):
        source = all_models[0] / f"run/mil/ER/toy+{name}/model/fold-{number}.safetensors"
        (tmp_path / source.name).write_bytes(source.read_bytes())
    ran = run_command(all_models[0], "predict", "--model", tmp_path, "--run", "run")
    assert ran.code == 2
    assert "fold 1 is max-pool, the first clam-sb" in ran.stderr


def test_compare_and_doctor_take_models_for_what_they_are(all_models: tuple[Path, Ran]) -> None:
    folder, _ = all_models
    ran = run_command(
        folder, "compare", "--run", "run", "--task", "ER", "--encoder", "toy", "--encoder", "toy+clam-sb",
        "--bootstrap", 100, "--permutations", 99, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert [row["encoder"] for row in ran.json["tasks"][0]["encoders"]] == ["toy", "toy+clam-sb"]
    broken = folder / "run/mil/ER/toy+dsmil/model/fold-1.safetensors"
    content = broken.read_bytes()
    broken.write_bytes(content[:-50])
    told = run_command(folder, "doctor", "run", "--json").stdout
    broken.write_bytes(content)
    assert "--encoder toy --model dsmil" in told


def test_the_command_of_a_report_learns_nothing_anew(all_models: tuple[Path, Ran]) -> None:
    folder, _ = all_models
    before = (folder / "run/mil/ER/toy+dsmil/metrics.json").read_bytes()
    page = (folder / "run/mil/ER/toy+dsmil/report.html").read_text()
    command = next(line for line in page.replace("&#39;", "'").splitlines() if "wsi-dino mil" in line)
    words = shlex.split(command[command.index("wsi-dino mil") :].split("<")[0])
    assert "--set query_dim=8" in " ".join(words)
    assert "n_landmarks" not in " ".join(words)
    ran = run_command(folder / "run", *words[1:], "--json")
    assert ran.code == 0, ran.stderr
    assert (folder / "run/mil/ER/toy+dsmil/metrics.json").read_bytes() == before


def test_the_command_of_a_task_from_the_project_file_can_be_typed(tmp_path: Path) -> None:
    make_run(tmp_path, 12)
    (tmp_path / "wsi-dino.yaml").write_text("run: run\nlabels: labels.csv\ntasks: {er: {target: ER}}\n")
    ran = run_command(tmp_path, "mil", "--task", "er", *QUICK, "--model", "mean-pool", "--model", "abmil")
    assert ran.code == 0, ran.stderr
    for name in ("toy", "toy+mean-pool"):
        page = (tmp_path / f"run/mil/er/{name}/report.html").read_text()
        command = next(line for line in page.splitlines() if "wsi-dino mil" in line)
        words = shlex.split(command[command.index("wsi-dino mil") :].split("<")[0])
        assert ("--model" in words) == (name != "toy")
        assert run_command(tmp_path, *words[1:], "--no-report").code == 0, words


def test_hyperparameters_come_from_the_project_file_too(tmp_path: Path) -> None:
    make_run(tmp_path, 12)
    (tmp_path / "wsi-dino.yaml").write_text(
        "run: run\nlabels: labels.csv\nmil: {model: clam-sb, hidden_dim: 24, set: {k_sample: 3, subtyping: true}}\n"
    )
    ran = run_command(tmp_path, "mil", "--target", "ER", *QUICK, "--no-report", "--set", "bag_weight=0.6")
    assert ran.code == 0, ran.stderr
    options = _metrics(tmp_path, "toy+clam-sb")["protocol"]["training"]["options"]
    assert (options["hidden_dim"], options["bag_weight"]) == (24, 0.6)
    assert options["k_sample"] == 8, "what is typed takes the place of the file's"
    ran = run_command(tmp_path, "mil", "--target", "ER", *QUICK, "--no-report")
    options = _metrics(tmp_path, "toy+clam-sb")["protocol"]["training"]["options"]
    assert (options["k_sample"], options["subtyping"]) == (3, True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--model", "clam"), "there is no 'clam'. Did you mean 'clam-sb'"),
        (("--model", "clam-sb", "--set", "ksample=4"), "no hyper-parameter 'ksample'. Did you mean 'k_sample'"),
        (("--model", "clam-sb", "--set", "k_sample"), "expected KEY=VALUE"),
        (("--model", "clam-sb", "--set", "k_sample=many"), "k_sample = many"),
        (("--model", "clam-sb", "--set", "dsmil.query_dim=8"), "does not name 'dsmil'"),
        (("--model", "mean-pool", "--attention-dim", 8), "mean-pool has no hyper-parameter 'attention_dim'"),
        (("--model", "mean-pool", "--set", "seed=3"), "no hyper-parameter 'seed'"),
        (("--model", "transmil", "--set", "hidden_dim=30"), "n_heads = 8 does not divide hidden_dim = 30"),
        (("--model", "mean-pool", "--dropout", 1.5), "dropout = 1.5"),
        (("--lr", -1), "--lr -1.0"),
        (
            ("--regression", "--model", "clam-sb"),
            "clam-sb: it learns one class a slide, and task ER is of kind regression",
        ),
        (("--model", "clam-sb", "--adapt", "lora", "--encoder", "toy"), "leave out --model"),
    ],
)
def test_wrong_usage_is_named(more: tuple[object, ...], said: str, tmp_path: Path) -> None:
    make_run(tmp_path, 12)
    ran = _mil(tmp_path, *more)
    assert ran.code == 2
    assert said in " ".join(ran.stderr.split())
    assert not (tmp_path / "run/mil").exists()


# search ---------------------------------------------------------------------------------------
_SEARCH = ("--model", "mean-pool", "--hidden-dim", 8, "--search", 3)


def _write_split(folder: Path, n: int) -> None:
    """One fold in which the last quarter of the patients is tested."""
    subset = ["train"] * (n // 2) + ["val"] * (n // 4) + ["test"] * (n // 4)
    lines = [f"0,P{index},{name}" for index, name in enumerate(subset)]
    (folder / "splits.csv").write_text("\n".join(["fold,patient_id,subset", *lines]))


def test_search_never_sees_what_is_tested(tmp_path: Path) -> None:
    """With every label of the test slides turned round it chooses the same, from the same losses."""
    pytest.importorskip("optuna")
    chosen = []
    for name in ("true", "poisoned"):
        folder = tmp_path / name
        make_run(folder, 24)
        _write_split(folder, 24)
        if name == "poisoned":
            rows = list(csv.reader((folder / "labels.csv").open(newline="")))
            turned = {"Positive": "Negative", "Negative": "Positive"}
            rows = [[*r[:2], turned[r[2]]] if r[1] in {f"P{i}" for i in range(18, 24)} else r for r in rows]
            with (folder / "labels.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows(rows)
        ran = _mil(folder, *_SEARCH, "--splits", "splits.csv", "--json")
        assert ran.code == 0, ran.stderr
        chosen.append(ran.json["search"])
    assert chosen[0] == chosen[1]
    assert set(chosen[0]["space"]) == {"dropout", "weight_decay"}, "--lr and --hidden-dim are set and stay"
    trials = [json.loads(p.read_text())["trials"] for p in sorted(tmp_path.glob("*/run/mil/ER/*/search/fold-0.json"))]
    assert trials[0] == trials[1]
    assert len(trials[0]) == 3


def test_what_is_set_for_one_model_is_searched_for_another(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    make_run(tmp_path, 12)
    both = ("--model", "mean-pool", "--model", "max-pool", "--search", 1, "--epochs", 1)
    assert _mil(tmp_path, *both, "--set", "max-pool.hidden_dim=8", "--set", "weight_decay=0").code == 0
    assert set(_metrics(tmp_path, "toy+mean-pool")["search"]["space"]) == {"dropout", "hidden_dim"}
    assert set(_metrics(tmp_path, "toy+max-pool")["search"]["space"]) == {"dropout"}


def test_search_is_told_and_its_model_is_the_chosen_one(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    make_run(tmp_path, 12)
    ran = _mil(tmp_path, *_SEARCH, "--model", "linear-mean", report=True)
    assert ran.code == 0, ran.stderr
    assert "nothing is left to be searched for linear-mean" in ran.stderr
    assert "search" not in _metrics(tmp_path, "toy+linear-mean")
    folds = _metrics(tmp_path, "toy+mean-pool")["search"]["folds"]
    assert [fold["fold"] for fold in folds] == [0, 1]
    for fold in folds:
        assert fold["val_loss"] <= fold["val_loss_without"]
        config = json.loads((tmp_path / f"run/mil/ER/toy+mean-pool/model/fold-{fold['fold']}.json").read_text())
        assert config["spec"]["options"]["dropout"] == fold["chosen"]["dropout"]
        assert config["spec"]["weight_decay"] == fold["chosen"]["weight_decay"]
    assert "fold 1 chose" in (tmp_path / "run/mil/ER/toy+mean-pool/report.html").read_text()


def test_search_goes_on_after_kill_9_to_the_same_result(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    results = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        make_run(folder, 12)
        words = ["mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", *QUICK, "--no-report", *_SEARCH]
        words[-1] = 8
        if name == "killed":
            _kill_in_the_middle(folder, [str(word) for word in words])
        ran = run_command(folder, *words, "--json")
        assert ran.code == 0, ran.stderr
        results[name] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted((folder / "run/mil").rglob("*"))
            if path.is_file()
        }
    assert results["whole"] == results["killed"]


def _kill_in_the_middle(folder: Path, words: list[str]) -> None:
    """Kill the command once the first fold has two trials of eight."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wsi_dino.cli", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    path, until = folder / "run/mil/ER/toy+mean-pool/search/fold-0.json", time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if path.exists() and len(json.loads(path.read_text())["trials"]) >= 2:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "run/mil/ER/toy+mean-pool/metrics.json").exists(), "killed too late to show anything"
    assert len(json.loads(path.read_text())["trials"]) >= 2
