"""Workers that are killed, hang, or are started twice leave what one process leaves, file for file."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import run_command
from PIL import Image

from wsi_dino.cli.interrupts import ctrl_c_waits
from wsi_dino.cli.launchers.engine import checked
from wsi_dino.cli.launchers.local import LocalSettings
from wsi_dino.cli.launchers.registry import LauncherName, read_settings
from wsi_dino.cli.launchers.task import WorkerEnd, WorkerTask, run_worker
from wsi_dino.cli.launching import without_launching
from wsi_dino.errors import ConfigError
from wsi_dino.pathology.embed_table import embed_stage
from wsi_dino.run_folder import RunFolder

_N_SLIDES = 50
_TILE = ("tile", "slides", "--mpp", "native", "--a-t", "0.2", "--run")
_ENCODER = "timm/test_vit.r160_in1k"
_EMBED = ("embed", "--encoder", _ENCODER, "--random-weights", "0", "--precision", "fp32", "--device", "cpu", "--run")
_TIMES = {"seconds", "tiles_per_s", "tiles_encoded", "tiles_resumed"}


def _draw(folder: Path, n_slides: int) -> Path:
    (folder / "slides").mkdir()
    for number in range(n_slides):
        noise = np.random.default_rng(number).normal(0, 18, (460, 460 + 230 * (number % 3), 3))
        pixels = np.clip(np.array([190, 110, 170]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "slides" / f"S{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of slides and the run `one`, made by one process."""
    folder = _draw(tmp_path_factory.mktemp("launched"), _N_SLIDES)
    assert run_command(folder, *_TILE, "one").code == 0
    return folder


def _content(run: Path) -> dict[str, object]:
    """Every file of a run but its state; of tables all but what tells of time."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name.startswith(".state"):
            continue
        if path.suffix == ".csv":
            rows = list(csv.DictReader(path.open()))
            found[name] = [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]
        else:
            found[name] = path.read_bytes()
    return found


def _start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wsi_dino.cli", *words], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def _workers(run: Path) -> list[int]:
    found = []
    for path in (run / ".state" / "workers").glob("*.json"):
        try:
            record = json.loads(path.read_text())
            os.kill(record["pid"], 0)
        except (OSError, ValueError):
            continue
        if record["name"] != "results":
            found.append(record["pid"])
    return found


class _Killer(threading.Thread):
    """Sends a signal to a random worker whenever so many items are finished."""

    def __init__(self, run: Path, stage: str, thresholds: list[int], number: int = signal.SIGKILL) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.stage, self.thresholds, self.signal = run, stage, list(thresholds), number
        self.hit: list[int] = []
        self.is_over = False
        self.start()

    def run(self) -> None:
        rows = self.run_folder / ".state" / self.stage
        while self.thresholds and not self.is_over:
            if len(list(rows.glob("*.json"))) >= self.thresholds[0] and (alive := _workers(self.run_folder)):
                chosen = random.choice(alive)
                if chosen not in self.hit:
                    self.hit.append(chosen)
                    os.kill(chosen, self.signal)
                    self.thresholds.pop(0)
            time.sleep(0.002)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out, err


def _launch_and_kill(project: Path, run: str, words: tuple[str, ...], stage: str, *options: str) -> str:
    killer = _Killer(project / run, stage, sorted(random.sample(range(2, 40), 2)))
    out, err = _end(_start(project, *words, run, "--json", *options))
    killer.is_over = True
    assert killer.hit, err
    assert err.count("was killed by signal 9") == len(killer.hit), err
    assert json.loads(out)["command"] == words[0]
    return err


# --- what is killed -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--launcher", "ray"), ("--launcher", "slurm", "--launch", "cluster=local", "--launch", "memory_gb=1")],
    ids=["ray", "slurm"],
)
def test_killed_workers_leave_what_one_process_leaves(project: Path, options: tuple[str, ...]) -> None:
    name = options[1]
    if name == "ray":
        pytest.importorskip("ray")
    else:
        pytest.importorskip("submitit")
    _launch_and_kill(project, name, _TILE, "tile", *options, "--launch-workers", "2")
    assert _content(project / name) == _content(project / "one")


@pytest.mark.slow
def test_killed_encoders_leave_what_one_process_leaves(project: Path, tmp_path: Path) -> None:
    for each in ("alone", "encoded"):
        shutil.copytree(project / "one", tmp_path / each)
    (tmp_path / "slides").symlink_to(project / "slides")
    stage = RunFolder(tmp_path / "encoded").row_path(embed_stage(_ENCODER), "S00").parent.name
    _launch_and_kill(tmp_path, "encoded", _EMBED, stage, "--launcher", "local", "--launch-workers", "2")
    assert run_command(tmp_path, *_EMBED, "alone").code == 0
    assert _content(tmp_path / "encoded") == _content(tmp_path / "alone")


# --- what hangs, and what is started twice ----------------------------------------------------------


@pytest.mark.slow
def test_worker_that_hangs_is_noticed_and_its_item_done_by_another(project: Path) -> None:
    killer = _Killer(project / "hung", "tile", [3], signal.SIGSTOP)
    process = _start(project, *_TILE, "hung", "--launcher", "local", "--launch-workers", "2", WSI_DINO_LEASE_S="2")
    _, err = _end(process)
    assert len(killer.hit) == 1
    assert "did not move on and was ended; it is started anew" in err
    assert _content(project / "hung") == _content(project / "one")


@pytest.mark.slow
def test_two_launches_of_one_run_do_no_harm(project: Path) -> None:
    both = [_start(project, *_TILE, "twice", "--launcher", "local", "--launch-workers", "2") for _ in range(2)]
    for process in both:
        _end(process)
    assert _content(project / "twice") == _content(project / "one")
    status = run_command(project, "status", "twice", "--json").json
    assert status["is_done"]
    assert [stage["counts"] for stage in status["stages"]] == [{"done": _N_SLIDES}]
    assert status["workers"] == []


@pytest.mark.slow
def test_worker_ends_with_the_one_that_started_it(project: Path) -> None:
    task = WorkerTask("w1", ("tile", "slides", "--run", "left"), str(project), str(project / "left"),
                      str(project / "left.log"))  # fmt: skip
    code = "import sys; from wsi_dino.cli.launchers.task import *; run_worker(eval(sys.argv[1]))"
    starter = subprocess.Popen([sys.executable, "-c", code, repr(task)])
    while not (alive := _workers(project / "left")) and starter.poll() is None:
        time.sleep(0.01)
    starter.kill()
    starter.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/stat").exists() for pid in alive) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/stat").exists() for pid in alive)


# --- Ctrl-C -----------------------------------------------------------------------------------------


def _marked(mark: str) -> list[str]:
    """Command lines of all processes whose environment has the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"TEST_MARK={mark}\0".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def _left(mark: str, patience_s: float = 30.0) -> list[str]:
    """Command lines of what still runs; Python's own helpers need a moment to notice that nobody is left."""
    until = time.monotonic() + patience_s
    while (found := _marked(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _start_marked(folder: Path, code: str, *words: str) -> tuple[subprocess.Popen[str], str]:
    mark = f"{os.getpid()}-{random.getrandbits(60)}"
    process = subprocess.Popen(
        [sys.executable, *shlex.split(code), *words], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TEST_MARK": mark},
    )  # fmt: skip
    return process, mark


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize(
    ("launcher", "n_working"),
    [("local", 0), ("local", 2), ("slurm", 0), ("slurm", 2)],
)
def test_ctrl_c_ends_all_workers(
    project: Path, tmp_path: Path, launcher: str, n_working: int, send: Callable[[int, int], None]
) -> None:
    """To the command alone, or to all of its processes as from a keyboard; also while workers are being started."""
    (tmp_path / "slides").symlink_to(project / "slides")
    options = ["--launcher", launcher, "--launch-workers", "2"]
    if launcher == "slurm":
        pytest.importorskip("submitit")
        options += ["--launch", "cluster=local", "--launch", "memory_gb=1"]
    process, mark = _start_marked(tmp_path, "-m wsi_dino.cli", *_TILE, "run", *options)
    while process.poll() is None and (len(_marked(mark)) < 2 or len(_workers(tmp_path / "run")) < n_working):
        time.sleep(0.01)
    send(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert _left(mark) == []
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not [log for log in (tmp_path / "run").rglob("*.log") if "Traceback" in log.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_step_of_the_paper_ends_with_what_runs_it(project: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "slides").symlink_to(project / "slides")
    code = "-c 'import sys; from pathlib import Path; from wsi_dino.cli.paper_run import in_its_own_process as run; "
    process, mark = _start_marked(tmp_path, code + 'run(sys.argv[1:], Path("log"))\'', *_TILE, "run")
    while process.poll() is None and not _workers(tmp_path / "run"):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    process.communicate(timeout=300)
    assert _left(mark, 60) == []
    assert "interrupted: finished work is kept" in (tmp_path / "log").read_text()


def test_ctrl_c_waits_for_what_must_be_done_whole() -> None:
    done = []

    def work() -> None:
        with ctrl_c_waits():
            os.kill(os.getpid(), signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("moment", ["load", "run", "leave"])
def test_ctrl_c_shows_no_traceback_while_the_program_is_loaded_or_leaves(moment: str) -> None:
    press = "signal.raise_signal(signal.SIGINT)"
    code = [
        "import atexit, signal, sys", "from wsi_dino.cli.interrupts import run_program",
        "def program(arguments):", f"    {press if moment == 'run' else 'sys.exit(0)'}",
        "def load():", f"    {press if moment == 'load' else 'return program'}",
        f"atexit.register(lambda: {press if moment == 'leave' else None})", "run_program(load)",
    ]  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


# --- parts ----------------------------------------------------------------------------------------


def test_parts_do_the_whole_between_them_and_the_last_command_writes_the_table(tmp_path: Path) -> None:
    _draw(tmp_path, 5)
    parts = [run_command(tmp_path, *_TILE, "parts", "--shard", f"{i}/2", "--json") for i in (1, 2)]
    assert [part.code for part in parts] == [0, 0]
    assert sorted(part.json["done"] for part in parts) == [2, 3]
    assert not (tmp_path / "parts" / "tiles.csv").exists()
    assert run_command(tmp_path, *_TILE, "parts").code == 0
    assert run_command(tmp_path, *_TILE, "one").code == 0
    assert _content(tmp_path / "parts") == _content(tmp_path / "one")


def test_part_with_a_plus_does_what_the_others_left(tmp_path: Path) -> None:
    _draw(tmp_path, 4)
    assert run_command(tmp_path, *_TILE, "run", "--shard", "2/2+", "--json").json["done"] == 4


def test_damaged_item_is_a_failure_of_its_part(tmp_path: Path) -> None:
    _draw(tmp_path, 2)
    (tmp_path / "slides" / "S01.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    ran = run_command(tmp_path, *_TILE, "run", "--shard", "1/1", "--json")
    assert (ran.code, ran.json["failed"]) == (1, 1)
    assert "failed: tile: S01" in ran.stderr
    status = run_command(tmp_path, "status", "run", "--json")
    assert status.code == 1
    assert [failure["item"] for failure in status.json["failures"]] == ["S01"]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2++"])
def test_wrong_part_is_wrong_usage(tmp_path: Path, shard: str) -> None:
    ran = run_command(tmp_path, *_TILE, "run", "--shard", shard)
    assert ran.code == 2
    assert "expected I/N" in ran.stderr


# --- settings -------------------------------------------------------------------------------------


def test_wrong_settings_are_told_with_what_is_known(tmp_path: Path) -> None:
    _draw(tmp_path, 1)
    for words, told in [
        (("--launch", "partitoin=gpu"), "partition"),
        (("--launch", "gpus=many"), "gpus"),
        (("--launch", "gpus"), "KEY=VALUE"),
        (("--shard", "1/2"), "leave out --shard"),
    ]:
        ran = run_command(tmp_path, *_TILE, "run", "--launcher", "slurm", *words)
        assert ran.code == 2
        assert told in ran.stderr


def test_every_launcher_has_settings_of_its_own() -> None:
    for name in LauncherName:
        assert read_settings(name, {"workers": "3"}).workers == 3
    with pytest.raises(ConfigError, match="--launcher local: workers"):
        checked(LocalSettings, "local", {"workers": "three"})


def test_launching_words_are_not_handed_to_workers() -> None:
    typed = ["embed", "--launcher", "slurm", "--launch", "gpus=1", "--launch-workers=4", "--run", "r", "--shard=1/2"]
    assert without_launching(typed) == ("embed", "--run", "r")


def test_refusal_of_all_workers_is_told_once_as_their_own(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "tile", "nowhere", "--run", "run", "--launcher", "local", "--launch-workers", "1")
    assert ran.code == 2
    assert "error: " in ran.stderr
    assert "nowhere" in ran.stderr


def test_a_worker_runs_behind_its_set_up_lines(tmp_path: Path) -> None:
    task = WorkerTask("w1", ("--version",), str(tmp_path), str(tmp_path / "run"), str(tmp_path / "logs" / "w1.log"),
                      setup=("echo set up >&2",))  # fmt: skip
    end = run_worker(task)
    assert isinstance(end, WorkerEnd)
    assert end.code == 0
    assert end.stdout.startswith("wsi-dino ")
    assert Path(task.log).read_text() == "set up\n"
