"""`embed` on several devices: the same files as from one process, told as one, whatever ends early."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_command
from PIL import Image

from wsi_dino.cli import embed_processes
from wsi_dino.cli.embed_devices import plan_devices
from wsi_dino.cli.embed_processes import Worker, _only_visible
from wsi_dino.encoders.executors import CpuThreads, OneDevice
from wsi_dino.errors import ConfigError, EncoderError
from wsi_dino.pathology.embedding import EmbedOutcome, EncoderOutcome, merged_outcome

TINY = "timm/test_vit.r160_in1k"
_EMBED = ("embed", "--run", "run", "--encoder", TINY, "--random-weights", "0", "--precision", "fp32")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides of tissue in a run; copy it before use."""
    folder = tmp_path_factory.mktemp("tiled")
    (folder / "slides").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).normal(0, 18, (900, 900 + 300 * number, 3))
        pixels = np.clip(np.array([190, 110, 170]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "slides" / f"S{number}.png")
    assert run_command(folder, "tile", "slides", "--run", "run", "--mpp", "native").code == 0
    return folder


@pytest.fixture
def project(tiled: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiled / "run", tmp_path / "run")
    return tmp_path


def _features(project: Path) -> dict[str, bytes]:
    folder = project / "run" / "features" / TINY.replace("/", "__")
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def _start(project: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wsi_dino.cli", *_EMBED, "--json", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=project, text=True, start_new_session=True, **pipes)


def _children(process: subprocess.Popen[str]) -> list[int]:
    """Ids of the processes on the devices, without Python's own helper."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    ids = [int(number) for number in listed.read_text().split()] if listed.exists() else []
    return [number for number in ids if "spawn_main" in _command_line(number)]


def _command_line(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return ""


def _wait_for_children(process: subprocess.Popen[str], count: int) -> list[int]:
    while process.poll() is None:
        if len(found := _children(process)) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(process.communicate())


# --- which devices --------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["tpu", "cpu,", "cuda:x", "cuda,cuda:1", "auto,cpu", "cuda:-1", ""])
def test_a_device_that_is_none_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        plan_devices(asked, 3)


@pytest.mark.parametrize(("n_gpus", "devices"), [(0, ("auto",)), (1, ("auto",)), (3, ("cuda:0", "cuda:1", "cuda:2"))])
def test_auto_takes_every_gpu(n_gpus: int, devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_dino.cli.embed_devices._visible_gpus", lambda: n_gpus)
    assert plan_devices("auto", 10) == devices
    assert plan_devices("cpu", 10) == ("cpu",)
    assert plan_devices("cuda:1", 10) == ("cuda:1",)
    assert len(plan_devices("auto", 2)) <= 2


def test_each_process_sees_its_gpu_alone_also_among_those_a_scheduler_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _only_visible("cuda:2") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7f")
    assert _only_visible("cuda:1") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-7f"
    assert _only_visible("cpu") == "cpu"


# --- two processes as one --------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one_and_are_told_as_one(project: Path, tiled: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(tiled / "run", alone / "run")
    one = run_command(alone, *_EMBED, "--device", "cpu", "--workers", "2", "--json")
    assert "processes" not in one.json
    process = _start(project, "--device", "cpu,cpu", "--workers", "2")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1
    together = json.loads(out)
    assert _features(project) == _features(alone)
    assert len(_features(project)) == 4
    keys = ("done", "failed", "tiles", "tiles_encoded", "tiles_resumed", "slides_kept")
    told, expected = together["encoders"][TINY], one.json["encoders"][TINY]
    assert {key: told[key] for key in keys} == {key: expected[key] for key in keys}
    assert [worker["device"] for worker in together["processes"]] == ["cpu", "cpu"]
    assert not any(worker["trouble"] for worker in together["processes"])
    assert "one process on each of cpu, cpu" in err


@pytest.mark.slow
def test_a_killed_process_is_told_and_its_slides_are_done_by_the_other(project: Path) -> None:
    process = _start(project, "--device", "cpu,cpu")
    os.kill(_wait_for_children(process, 2)[0], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "the process on cpu was killed by signal 9" in err
    result = json.loads(out)
    assert result["encoders"][TINY]["done"] == 4
    assert sum("signal 9" in worker["trouble"] for worker in result["processes"]) == 1
    assert len(_features(project)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("send", "n_started"), [(os.kill, 1), (os.kill, 2), (os.killpg, 1), (os.killpg, 2)])
def test_ctrl_c_ends_all_processes(project: Path, send: Callable[[int, int], None], n_started: int) -> None:
    """To the command alone, or to all of its processes as from a keyboard; also while they are being started."""
    process = _start(project, "--device", "cpu,cpu")
    children = _wait_for_children(process, n_started)
    send(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["exit_code"] == 130
    assert "Traceback" not in err
    assert not [number for number in children if "spawn_main" in _command_line(number)]


class _Ended:
    """A process that is over."""

    exitcode = -9

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        pass


def _ended_with(*messages: tuple[str, object]) -> Worker:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    for message in messages:
        theirs.send(message)
    theirs.close()
    return Worker("cpu", _Ended(), ours)


def _outcome(*finished: str, tiles: int) -> EmbedOutcome:
    rows = [{"slide_id": name, "status": "done"} for name in "ab"]
    one = EncoderOutcome("e", rows, tiles_encoded=tiles, slides_finished=frozenset(finished))
    return EmbedOutcome([one], 1.0, {"reading": 0.5, "encoding": 1.0, "writing": 0.0})


def _embed_with(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> tuple[EmbedOutcome, list[float], list[str]]:
    left, shown, said = iter(workers), [], []
    monkeypatch.setattr(embed_processes, "_start", lambda *_: next(left))
    progress = lambda advance=0, **_: shown.append(advance)  # noqa: E731
    outcome, _ = embed_processes.embed_in_processes(None, ["cpu"] * len(workers), progress, said.append)  # type: ignore[arg-type]
    return outcome, shown, said


def _told(encoded: int, found: int) -> tuple[str, dict]:
    return "progress", {"encoded": encoded, "found": found, "total": 30, "text": "S"}


def test_progress_of_several_processes_counts_no_tile_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each also reports, as found, what the other did."""
    first = _ended_with(_told(10, 0), _told(0, 20), ("notice", "n"), ("outcome", _outcome("a", tiles=10)))
    second = _ended_with(_told(20, 0), _told(0, 10), ("notice", "n"), ("outcome", _outcome("b", tiles=20)))
    outcome, shown, said = _embed_with([first, second], monkeypatch)
    assert sum(shown) == 30
    assert min(shown) >= 0
    assert outcome.encoders[0].tiles_encoded == 30
    assert said == ["n"]


def test_what_one_process_could_not_do_is_said_and_what_none_could_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = ("error", EncoderError("no such pooling"))
    outcome, _, said = _embed_with(
        [_ended_with(refusal), _ended_with(("outcome", _outcome("a", "b", tiles=5)))], monkeypatch
    )
    assert outcome.encoders[0].tiles_encoded == 5
    assert "gave up: no such pooling" in said[0]
    with pytest.raises(EncoderError, match=r"^no such pooling$"):
        _embed_with([_ended_with(refusal), _ended_with(refusal)], monkeypatch)
    with pytest.raises(EncoderError, match="killed by signal 9"):
        _embed_with([_ended_with(), _ended_with()], monkeypatch)


def test_merged_outcome_counts_each_slide_once() -> None:
    rows = [{"slide_id": name, "status": "done"} for name in "abc"]
    parts = [
        EncoderOutcome("e", rows, tiles_encoded=10, slides_kept=2, slides_finished=frozenset("a")),
        EncoderOutcome("e", rows, tiles_encoded=5, tiles_resumed=1, slides_kept=2, slides_finished=frozenset("b")),
    ]
    load = {"reading": 1.0, "encoding": 0.5, "writing": 0.0}
    merged = merged_outcome([EmbedOutcome([part], seconds, load) for part, seconds in zip(parts, (2, 4), strict=True)])
    (one,) = merged.encoders
    assert (one.tiles_encoded, one.tiles_resumed, one.slides_kept, one.count("done")) == (15, 1, 1, 3)
    assert (merged.seconds, merged.load["reading"], merged.limited_by) == (4, 0.75, "reading")


# --- batches ---------------------------------------------------------------------------------------


def test_processes_share_the_cores_but_not_the_cut_into_batches() -> None:
    alone, shared = CpuThreads(224, "fp32", 6), CpuThreads(224, "fp32", 6, processes=2)
    assert (alone.workers, shared.workers) == (6, 3)
    assert (alone.chunk_size, alone.batch_size) == (shared.chunk_size, shared.batch_size)


def test_a_full_device_halves_its_chunks_and_loses_nothing() -> None:
    device = OneDevice("cpu", lambda chunk: chunk, 8)
    asked: list[int] = []

    def needs_memory(chunk: torch.Tensor) -> torch.Tensor:
        asked.append(len(chunk))
        if len(chunk) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return chunk.float().mean((1, 2, 3))

    pixels = torch.randint(0, 256, (11, 8, 8, 3), dtype=torch.uint8)
    results = torch.cat(device.run(needs_memory, pixels))[: len(pixels)]
    torch.testing.assert_close(results, pixels.float().mean((1, 2, 3)))
    assert (device.chunk_size, device.batch_size) == (4, 16)
    assert asked == [16, 8, 4, 4, 4]


def test_a_device_without_room_for_one_image_gives_up() -> None:
    def never(chunk: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        OneDevice("cpu", lambda chunk: chunk, 8).run(never, torch.zeros(3, 8, 8, 3, dtype=torch.uint8))
