"""A claim counts between machines: an owner is believed while its counter goes up, replaced once it stands still."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from wsi_dino import claims, heartbeat
from wsi_dino.claims import Claim, try_claim
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.run_folder import RunFolder

_LEASE_S = 0.4


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSI_DINO_LEASE_S", str(_LEASE_S))
    monkeypatch.setattr(claims, "_seen", {})


def _elsewhere(path: Path, beat: int = 0, token: str = "a") -> None:
    """Write what an owner on another machine holds; its kernel's lock is not seen here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"0000-machine host 17 {token} {beat:010d}\n")


def _claim_within(path: Path, seconds: float) -> Claim | None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (claim := try_claim(path)) is not None:
            return claim
        time.sleep(0.02)
    return None


def test_owner_on_another_machine_is_believed_though_no_lock_is_seen(tmp_path: Path) -> None:
    _elsewhere(tmp_path / "slide.lock")
    assert try_claim(tmp_path / "slide.lock") is None
    assert try_claim(tmp_path / "slide.lock") is None


@pytest.mark.usefixtures("short_lease")
def test_owner_that_is_silent_for_a_lease_is_replaced_once(tmp_path: Path) -> None:
    path = tmp_path / "slide.lock"
    _elsewhere(path)
    claim = _claim_within(path, 20)
    assert claim is not None
    assert claim.after_expiry
    assert try_claim(path) is None
    claim.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short_lease")
def test_owner_whose_counter_goes_up_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "slide.lock"
    for beat in range(12):
        _elsewhere(path, beat)
        assert try_claim(path) is None
        time.sleep(_LEASE_S / 4)


@pytest.mark.usefixtures("short_lease")
def test_own_counter_goes_up_while_work_moves_on_and_stands_still_when_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slide.lock"
    claim = try_claim(path)
    assert claim is not None
    until, first = time.monotonic() + 20, path.read_bytes()
    while path.read_bytes() == first and time.monotonic() < until:
        heartbeat.note_progress()
        time.sleep(0.02)
    assert path.read_bytes() != first
    monkeypatch.setenv("WSI_DINO_HANG_S", "0.05")
    time.sleep(0.3)
    still = path.read_bytes()
    other = _claim_within(path, 20)  # though the kernel's lock is held: the owner lives and hangs
    assert path.read_bytes() != still
    assert other is not None
    assert other.after_expiry
    assert not claim.is_held()
    claim.release()  # leaves the file of the new owner alone
    assert other.is_held()
    other.release()
    assert not path.exists()


@pytest.mark.usefixtures("short_lease")
def test_two_that_find_the_same_dead_owner_do_not_both_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slide.lock"
    _elsewhere(path, token="dead")
    content = path.read_bytes()
    monkeypatch.setattr(claims, "_stands_still", lambda path, content: True)
    first = try_claim(path)
    assert first is not None
    # the second one has read the dead owner's file before the first replaced it
    assert claims._take_over(path, content, has_lock=True) is None
    assert first.is_held()
    first.release()


@pytest.mark.usefixtures("short_lease")
def test_marker_of_one_that_died_while_replacing_does_not_block_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "slide.lock"
    _elsewhere(path)
    (tmp_path / "slide.lock.next").touch()
    claim = _claim_within(path, 30)
    assert claim is not None
    claim.release()


def test_file_system_without_links_and_locks_still_has_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.os, "link", none)
    monkeypatch.setattr(claims.fcntl, "flock", none)
    claim = try_claim(tmp_path / "slide.lock")
    assert claim is not None
    assert try_claim(tmp_path / "slide.lock") is None
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_lost_item_is_left_to_its_new_owner(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    queue = ItemQueue(run, "tile", [Item("s", "f1")])
    claimed = queue.take()
    assert claimed is not None
    os.replace(_other_file(tmp_path), run.claim_path("tile", "s"))  # another took it over
    queue.finish(claimed, {"status": "done", "by": "the slow one"})
    assert run.read_row("tile", "s") is None
    run.write_row("tile", "s", {"status": "done", "by": "the new owner", "fingerprint": "f1"})
    assert queue.take() is None
    assert [row["by"] for row in queue.rows()] == ["the new owner"]


def _other_file(folder: Path) -> Path:
    path = folder / "other"
    _elsewhere(path)
    return path
