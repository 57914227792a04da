"""Tasks whose folds are trained together leave what tasks learnt one fold at a time leave."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import run_command
from toy_features import SMALL, make_run

from wsi_dino.errors import ConfigError
from wsi_dino.mil import joint_training, joint_work, packed_training

PROJECT = "tasks:\n  er-a: {target: ER}\n  er-b: {target: PR}\n"
REQUEST = (
    "mil",
    "--no-report",
    "--run",
    "run",
    "--labels",
    "labels.csv",
    "--task",
    "all-er",
    "--precision",
    "fp32",
    *SMALL,
)


def _make(folder: Path) -> Path:
    """A run with two targets over the same slides, of which the second has fewer."""
    folder.mkdir()
    make_run(folder, 30)
    with (folder / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("slide_id", "patient_id", "ER", "PR"))
        for number, row in enumerate(rows):
            writer.writerow((row["slide_id"], row["patient_id"], row["ER"], row["ER"] if number < 26 else ""))
    (folder / "wsi-dino.yaml").write_text(PROJECT)
    return folder


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Have a CPU do what an accelerator does."""
    monkeypatch.setattr(packed_training, "_UNIT_ROWS_CPU", (10**9, 10**9))
    monkeypatch.setattr(joint_work, "trains_together", lambda learning: True)
    monkeypatch.setattr(joint_work, "fits_on", lambda *sizes: True)
    return monkeypatch


def _metrics(folder: Path, task: str) -> dict[str, object]:
    content = json.loads((folder / "run" / "mil" / task / "toy" / "metrics.json").read_text())
    return dict(content)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _numbers(folder: Path, task: str) -> list[float]:
    with (folder / "run" / "mil" / task / "toy" / "predictions.csv").open() as stream:
        return [float(row["score"]) for row in csv.DictReader(stream)]


def test_tasks_together_end_as_tasks_alone(tmp_path: Path, together: pytest.MonkeyPatch) -> None:
    joint, alone = _make(tmp_path / "joint"), _make(tmp_path / "alone")
    assert run_command(joint, *REQUEST).code == 0
    together.setattr(joint_work, "trains_together", lambda learning: False)
    assert run_command(alone, *REQUEST).code == 0
    assert _files(joint) == _files(alone)
    for task in ("er-a", "er-b"):
        assert _numbers(joint, task) == pytest.approx(_numbers(alone, task), abs=1e-4)


def test_stopped_in_the_middle_goes_on_with_what_is_missing(tmp_path: Path, together: pytest.MonkeyPatch) -> None:
    folder, calls = _make(tmp_path / "joint"), []
    learn, train = joint_work.learn_fold, joint_training.train_together

    def stops_at_the_fourth(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        if len(calls) == 4:
            raise ConfigError("stopped")
        return learn(*arguments, **more)  # type: ignore[arg-type]

    together.setattr(joint_work, "learn_fold", stops_at_the_fourth)
    assert run_command(folder, *REQUEST).code == 2
    together.setattr(joint_work, "learn_fold", learn)
    sizes: list[int] = []

    def counted(jobs: object, *arguments: object, **more: object) -> object:
        sizes.append(len(list(jobs)))  # type: ignore[call-overload]
        return train(jobs, *arguments, **more)  # type: ignore[arg-type]

    together.setattr(joint_work, "train_together", counted)
    assert run_command(folder, *REQUEST).code == 0
    assert sizes == [7]
    assert run_command(folder, *REQUEST).code == 0
    assert sizes == [7]
    assert len(_metrics(folder, "er-b")["folds"]) == 5  # type: ignore[arg-type]


def test_features_that_do_not_fit_are_learnt_from_one_fold_at_a_time(
    tmp_path: Path, together: pytest.MonkeyPatch
) -> None:
    folder = _make(tmp_path / "joint")
    together.setattr(joint_work, "fits_on", lambda *sizes: False)
    together.setattr(joint_work, "train_together", lambda *arguments, **more: pytest.fail("they do not fit"))
    assert run_command(folder, *REQUEST).code == 0
