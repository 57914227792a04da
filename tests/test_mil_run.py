"""A cross-validated task survives what happens to long work: kill -9, a second process, another option."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import run_command
from toy_features import SMALL, make_run, write_features, write_labels

from wsi_dino.run_folder import RunFolder

REQUEST = ("mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", *SMALL)


def _start(folder: Path, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wsi_dino.cli", *map(str, REQUEST), *map(str, more)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _contents(folder: Path) -> dict[str, bytes]:
    root = folder / "run" / "mil"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _n_finished(folder: Path) -> int:
    return len(RunFolder(folder / "run").rows("mil-ER-toy"))


@pytest.mark.slow
def test_killed_and_repeated_gives_the_same_bytes_as_undisturbed(tmp_path: Path) -> None:
    more = ("--epochs", 60, "--patience", 60)
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name, 30)
    assert run_command(tmp_path / "calm", *REQUEST, *more).code == 0

    process = _start(tmp_path / "killed", *more)
    deadline = time.monotonic() + 120
    while _n_finished(tmp_path / "killed") < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 1 <= _n_finished(tmp_path / "killed") < 5
    assert not (tmp_path / "killed/run/mil/ER/toy/metrics.json").exists()

    assert run_command(tmp_path / "killed", *REQUEST, *more).code == 0
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "calm")


@pytest.mark.slow
def test_two_processes_share_the_folds_and_end_alike(tmp_path: Path) -> None:
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name, 30)
    assert run_command(tmp_path / "alone", *REQUEST).code == 0
    pair = [_start(tmp_path / "shared") for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    assert _contents(tmp_path / "shared") == _contents(tmp_path / "alone")


def _fold_times(folder: Path) -> dict[str, int]:
    return {path.name: os.stat(path).st_mtime_ns for path in (folder / "run/mil/ER/toy/model").glob("*.safetensors")}


def test_finished_folds_are_not_learnt_again(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    assert run_command(tmp_path, *REQUEST, "--no-report").code == 0
    first, times = _contents(tmp_path), _fold_times(tmp_path)
    assert run_command(tmp_path, *REQUEST, "--no-report").code == 0
    assert _fold_times(tmp_path) == times
    assert _contents(tmp_path) == first


@pytest.mark.parametrize("changed", [("--epochs", 7), ("--threshold-policy", "fixed-0.5"), ("--folds", 4)])
def test_another_option_never_takes_old_folds(tmp_path: Path, changed: tuple[object, ...]) -> None:
    for name in ("reused", "fresh"):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name, 30)
    assert run_command(tmp_path / "reused", *REQUEST, "--no-report").code == 0
    for name in ("reused", "fresh"):
        assert run_command(tmp_path / name, *REQUEST, "--no-report", *changed).code == 0
    assert _contents(tmp_path / "reused") == _contents(tmp_path / "fresh")


def test_other_features_or_labels_never_take_old_folds(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    assert run_command(tmp_path, *REQUEST, "--no-report").code == 0
    times = _fold_times(tmp_path)
    write_features(tmp_path / "run/features/toy/S3.h5", True, seed=1000)
    assert run_command(tmp_path, *REQUEST, "--no-report").code == 0
    after_features = _fold_times(tmp_path)
    assert all(after_features[name] != times[name] for name in times)
    write_labels(tmp_path / "labels.csv", [(f"S{i}", f"P{i}", "Positive" if i % 2 else "Negative") for i in range(29)])
    assert run_command(tmp_path, *REQUEST, "--no-report").code == 0
    assert all(time_ns != after_features[name] for name, time_ns in _fold_times(tmp_path).items())


@pytest.mark.parametrize("damaged", ["model/fold-1.safetensors", "model/fold-1.json", "attention"])
def test_damaged_fold_is_learnt_again(tmp_path: Path, damaged: str) -> None:
    make_run(tmp_path, 30)
    assert run_command(tmp_path, *REQUEST, "--no-report").code == 0
    before = _contents(tmp_path)
    results = tmp_path / "run/mil/ER/toy"
    path = min(results.glob("attention/fold-1/*.h5")) if damaged == "attention" else results / damaged
    path.write_bytes(path.read_bytes()[:-1])
    times = _fold_times(tmp_path)
    assert run_command(tmp_path, *REQUEST, "--no-report").code == 0
    assert _contents(tmp_path) == before
    redone = {name for name, time_ns in _fold_times(tmp_path).items() if time_ns != times[name]}
    assert redone == {"fold-1.safetensors"}


def test_stale_results_are_gone_before_new_folds_are_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, 30)
    assert run_command(tmp_path, *REQUEST).code == 0
    import wsi_dino.mil.run as module

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "learn_fold", interrupted)
    assert run_command(tmp_path, *REQUEST, "--seed", 3).code == 130
    results = tmp_path / "run/mil/ER/toy"
    assert not any((results / name).exists() for name in ("metrics.json", "predictions.csv", "report.html"))


def test_outputs_hold_no_path_of_the_machine(tmp_path: Path) -> None:
    make_run(tmp_path, 30)
    assert run_command(tmp_path, *REQUEST).code == 0
    for name, content in _contents(tmp_path).items():
        assert str(tmp_path).encode() not in content, name
    metrics = json.loads((tmp_path / "run/mil/ER/toy/metrics.json").read_text())
    assert metrics["provenance"]["versions"]["scipy"] == version("scipy")
    assert set(metrics["protocol"]) >= {"threshold_policy", "split_scheme", "split_seed", "interval", "training"}
