"""Every item is worked on once, whoever shares the run, and whoever is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from wsi_dino import share
from wsi_dino.item_queue import Item, ItemQueue, LateItem
from wsi_dino.run_folder import RunFolder

# A worker that notes every piece of work it does; argv: run, number of items, seconds per item, item to hang at.
_WORKER = """
import os, sys, time
from pathlib import Path
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.run_folder import RunFolder
run, n, seconds, hang_at = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
queue = ItemQueue(RunFolder(run), "tile", [Item(f"s{i:02}", "f1") for i in range(n)])
while (claimed := queue.take()) is not None:
    with open(run / "log.txt", "a") as log:
        log.write(f"{os.getpid()} {claimed.item.key}\\n")
    print(claimed.item.key, flush=True)
    time.sleep(60 if claimed.item.key == hang_at else seconds)
    queue.finish(claimed, {"status": "done", "worker": os.getpid()})
"""


def _worker(run: Path, n: int, seconds: float, hang_at: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WORKER, str(run), str(n), str(seconds), hang_at]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (got := process.stdout.readline().strip()) != line:
        assert got, f"the worker ended before it printed {line}"


def _log(run: Path) -> list[list[str]]:
    return [line.split() for line in (run / "log.txt").read_text().splitlines()]


def _items(*keys: str, fingerprint: str = "f1") -> list[Item]:
    return [Item(key, fingerprint) for key in keys]


def _drain(queue: ItemQueue, status: str = "done", **extra: Any) -> list[str]:
    keys = []
    while (claimed := queue.take()) is not None:
        keys.append(claimed.item.key)
        queue.finish(claimed, {"status": status, **extra})
    return keys


# one process ------------------------------------------------------------------------------------
def test_items_come_in_order_once(tmp_path: Path) -> None:
    queue = ItemQueue(RunFolder(tmp_path), "tile", _items("b", "a", "c"))
    assert _drain(queue) == ["b", "a", "c"]
    assert [row["fingerprint"] for row in queue.rows()] == ["f1"] * 3
    assert list((tmp_path / ".state" / "claims" / "tile").iterdir()) == []


def test_finished_items_are_reused_and_failed_ones_retried(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _drain(ItemQueue(run, "tile", _items("done")), "done")
    _drain(ItemQueue(run, "tile", _items("empty")), "empty")
    assert _drain(ItemQueue(run, "tile", _items("failed")), "failed") == ["failed"]  # not twice by one command
    again = ItemQueue(run, "tile", _items("done", "empty", "failed"))
    assert _drain(again) == ["failed"]
    assert again.n_reused == 2
    assert [row["status"] for row in again.rows()] == ["done", "empty", "done"]


def test_changed_fingerprint_is_done_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _drain(ItemQueue(run, "tile", _items("a")))
    assert _drain(ItemQueue(run, "tile", _items("a", fingerprint="f2"))) == ["a"]


def test_other_stage_knows_nothing_of_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _drain(ItemQueue(run, "tile", _items("a")))
    assert _drain(ItemQueue(run, "embed", _items("a"))) == ["a"]


def test_promised_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _drain(ItemQueue(run, "tile", _items("a", "b")), file="a.h5")
    (tmp_path / "b.h5").touch()
    queue = ItemQueue(run, "tile", _items("a", "b"), lambda item, row: (tmp_path / f"{item.key}.h5").exists())
    assert _drain(queue) == ["a"]


def test_given_back_item_is_free_for_the_next_command(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first = ItemQueue(run, "tile", _items("a"))
    claimed = first.take()
    assert claimed is not None
    first.give_back(claimed)
    assert first.take() is None
    assert _drain(ItemQueue(run, "tile", _items("a"))) == ["a"]


def test_threads_share_one_queue_without_doubling(tmp_path: Path) -> None:
    keys = [f"s{i}" for i in range(40)]
    queue, done = ItemQueue(RunFolder(tmp_path), "tile", _items(*keys)), []
    threads = [threading.Thread(target=lambda: done.extend(_drain(queue))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(keys)
    assert len(queue.rows()) == 40


# several processes ------------------------------------------------------------------------------
def test_two_processes_share_without_doubling(tmp_path: Path) -> None:
    workers = [_worker(tmp_path, 20, 0.1) for _ in range(2)]
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0
    keys = [key for _, key in _log(tmp_path)]
    assert sorted(keys) == [f"s{i:02}" for i in range(20)]
    assert len({pid for pid, _ in _log(tmp_path)}) == 2


def test_killed_owner_is_taken_over_by_a_waiting_process(tmp_path: Path) -> None:
    hanging = _worker(tmp_path, 3, 0.0, hang_at="s01")
    _wait_for_line(hanging, "s01")
    other = _worker(tmp_path, 3, 0.0)
    _wait_for_line(other, "s02")
    time.sleep(0.3)
    assert other.poll() is None  # it waits, since s01 is still being worked on
    hanging.kill()
    hanging.communicate()
    other.communicate(timeout=30)
    assert other.returncode == 0
    assert [key for pid, key in _log(tmp_path) if int(pid) == other.pid] == ["s02", "s01"]


def test_kill_then_the_same_command_finishes_the_rest(tmp_path: Path) -> None:
    first = _worker(tmp_path, 4, 0.0, hang_at="s02")
    _wait_for_line(first, "s02")
    first.kill()
    first.communicate()
    second = _worker(tmp_path, 4, 0.0)
    second.communicate(timeout=30)
    assert [key for pid, key in _log(tmp_path) if int(pid) == second.pid] == ["s02", "s03"]
    assert [row["status"] for row in RunFolder(tmp_path).rows("tile")] == ["done"] * 4


def test_rows_of_the_other_process_are_seen(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    mine = ItemQueue(run, "tile", _items("a", "b"))
    first = mine.take()
    assert first is not None
    other = ItemQueue(run, "tile", _items("b"))
    _drain(other, worker="other")
    mine.finish(first, {"status": "done", "worker": "me"})
    assert _drain(mine) == []
    assert [row["worker"] for row in mine.rows()] == ["me", "other"]


def test_a_named_item_is_taken_only_when_it_is_unfinished_and_free(tmp_path: Path) -> None:
    items = [Item(key, "f1") for key in ("a", "b", "c")]
    here, there = (ItemQueue(RunFolder(tmp_path), "tile", items) for _ in range(2))
    taken = there.take_if_free("b")
    assert taken is not None
    assert here.take_if_free("b") is None
    assert there.take_if_free("b") is None
    there.finish(taken, {"status": "done"})
    assert here.take_if_free("b") is None
    assert here.n_reused == 1
    assert here.take_if_free("unknown") is None
    first = here.take_if_free("c")
    assert first is not None
    assert first.item.key == "c"
    here.give_back(first)


# parts and costs --------------------------------------------------------------------------------
def test_costliest_comes_first_and_rows_stay_in_order(tmp_path: Path) -> None:
    queue = ItemQueue(RunFolder(tmp_path), "tile", _items("a", "b", "c"), costs={"a": 1, "b": 3, "c": 2})
    assert _drain(queue) == ["b", "c", "a"]
    assert [row["fingerprint"] for row in queue.rows()] == ["f1"] * 3


def test_parts_of_a_divided_stage_are_disjoint_and_all(tmp_path: Path) -> None:
    keys, run = [f"s{i}" for i in range(7)], RunFolder(tmp_path)
    taken = []
    for part in (1, 2, 3):
        with share.using(share.Share(part, 3)):
            taken.append(_drain(ItemQueue(run, "tile", _items(*keys), is_divided=True)))
    assert [len(each) for each in taken] == [3, 2, 2]
    assert sorted(key for each in taken for key in each) == keys


def test_part_is_counted_by_place_where_some_items_are_not_given(tmp_path: Path) -> None:
    with share.using(share.Share(2, 2)):
        queue = ItemQueue(RunFolder(tmp_path), "s", _items("b", "d"), place_of={"b": 1, "d": 3}, is_divided=True)
        assert _drain(queue) == ["b", "d"]


def test_stage_that_is_not_divided_is_done_by_whoever_needs_it_own_part_first(tmp_path: Path) -> None:
    with share.using(share.Share(2, 2)):
        assert _drain(ItemQueue(RunFolder(tmp_path), "s", _items("a", "b", "c", "d"))) == ["b", "d", "a", "c"]


def test_helper_leaves_rows_of_others_alone_and_does_what_has_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_row("tile", "a", {"status": "done", "fingerprint": "of another request"})
    with share.using(share.Share(2, 2, helps=True)):
        assert _drain(ItemQueue(run, "tile", _items("a", "b", "c", "d"), is_divided=True)) == ["b", "d", "c"]
    assert _drain(ItemQueue(run, "tile", _items("a", "b", "c", "d"))) == ["a"]


def test_fingerprint_that_costs_something_is_made_for_what_is_taken_alone(tmp_path: Path) -> None:
    made: list[str] = []

    def late(key: str) -> Item:
        return LateItem(key, lambda: made.append(key) or f"mark {key}")

    with share.using(share.Share(1, 2)):
        queue = ItemQueue(RunFolder(tmp_path), "tile", [late(key) for key in "abcd"], is_divided=True)
        _drain(queue)
    assert made == ["a", "c"]
    assert [row["fingerprint"] for row in queue.rows()] == ["mark a", "mark c"]


def test_one_launch_tries_what_fails_once_and_the_next_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    monkeypatch.setenv("WSI_DINO_LAUNCH", "first")
    assert _drain(ItemQueue(run, "tile", _items("a")), "failed") == ["a"]
    second_worker = ItemQueue(run, "tile", _items("a"))
    assert _drain(second_worker) == []
    assert [row["status"] for row in second_worker.rows()] == ["failed"]
    monkeypatch.setenv("WSI_DINO_LAUNCH", "second")
    assert _drain(ItemQueue(run, "tile", _items("a"))) == ["a"]
