"""A claim excludes threads and processes, and dies with its owner."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wsi_dino.claims import try_claim
from wsi_dino.errors import StorageError

_HOLDER = """
import sys, time
from pathlib import Path
from wsi_dino.claims import try_claim
claim = try_claim(Path(sys.argv[1]))
print("held" if claim else "refused", flush=True)
if claim:
    time.sleep(60)
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_second_process_is_refused_until_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "claims" / "slide.lock"
    owner = _holder(path)
    try:
        assert _first_line(owner) == "held"
        assert try_claim(path) is None
        other = _holder(path)
        assert _first_line(other) == "refused"
        other.communicate()
    finally:
        _kill(owner)
    claim = try_claim(path)
    assert claim is not None
    claim.release()


def test_release_lets_the_next_process_in(tmp_path: Path) -> None:
    path = tmp_path / "slide.lock"
    claim = try_claim(path)
    assert claim is not None
    claim.release()
    assert not path.exists()
    owner = _holder(path)
    try:
        assert _first_line(owner) == "held"
    finally:
        _kill(owner)


def test_only_one_of_many_threads_gets_a_claim(tmp_path: Path) -> None:
    got = []
    barrier = threading.Barrier(8)

    def contend() -> None:
        barrier.wait()
        got.append(try_claim(tmp_path / "slide.lock"))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert sum(claim is not None for claim in got) == 1


def test_claims_stay_exclusive_while_files_come_and_go(tmp_path: Path) -> None:
    """A claim that unlinks its file between another's open and lock must not let two in."""
    path, inside, most = tmp_path / "slide.lock", [0], [0]
    guard = threading.Lock()

    def work() -> None:
        for _ in range(300):
            claim = try_claim(path)
            if claim is None:
                continue
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with guard:
                inside[0] -= 1
            claim.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_denied_folder_names_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("wsi_dino.claims.os.open", denied)
    with pytest.raises(StorageError, match=r"slide\.lock: not permitted"):
        try_claim(tmp_path / "slide.lock")
