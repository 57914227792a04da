"""Work through the items of a stage once each, whatever is killed, resumed or started twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi_dino import share, worker_record
from wsi_dino.claims import Claim, try_claim
from wsi_dino.run_folder import RunFolder

FINISHED = ("done", "empty")
# First and longest wait for others; each is a sweep over all that they hold. A helper has time: of a thousand of them
# each look is felt by the file server, and a wait is never longer than a fifth of the waiting before it.
_POLL_S, _HELPER_POLL_S = (0.1, 3.0), (0.1, 30.0)


@dataclass(frozen=True)
class Item:
    """One unit of work: `fingerprint` covers everything that can change its result."""

    key: str
    fingerprint: str


class LateItem(Item):
    """An item whose fingerprint costs something (a slide is read for it): known when it is first asked for.

    So each of many workers reads what it works on, and not everything.
    """

    def __init__(self, key: str, compute: Callable[[], str]) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "_compute", compute)

    def __getattr__(self, name: str) -> str:
        if name != "fingerprint":
            raise AttributeError(name)
        value: str = self.__dict__["_compute"]()
        object.__setattr__(self, "fingerprint", value)
        return value

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class ClaimedItem:
    """An item this worker alone may work on until `ItemQueue.finish` or `ItemQueue.give_back`."""

    item: Item
    claim: Claim


class ItemQueue:
    """Hands each item to one worker, over threads, processes and machines that share a run folder.

    An item is complete when its stored row has the same fingerprint, a status of `FINISHED` and
    `is_intact` finds its files. A failed item is tried again by the next command, not twice by one.

    Args:
        run: the run folder.
        stage: name under which rows and claims are stored, e.g. ``"tile"``.
        items: what is to be done, in the order of `rows`; keys are unique.
        is_intact: looks at the files that a finished row promises.
        costs: of items by key; the costliest is taken first, so that no worker begins it when others end. None:
            in the order of `items`.
        place_of: what `--shard` counts of each item, where only some of all items are given; None: their places.
        is_divided: this is the work that `--shard` divides; of other stages a process does what is left, its own
            part first.
    """

    def __init__(
        self,
        run: RunFolder,
        stage: str,
        items: Sequence[Item],
        is_intact: Callable[[Item, dict[str, Any]], bool] = lambda item, row: True,
        *,
        costs: Mapping[str, float] | None = None,
        place_of: Mapping[str, int] | None = None,
        is_divided: bool = False,
    ) -> None:
        self._run = run
        self._stage = stage
        self._is_intact = is_intact
        by_key = {item.key: item for item in items}
        by_cost = sorted(by_key, key=lambda key: -costs.get(key, 0.0)) if costs else list(by_key)
        self._open = {key: by_key[key] for key in share.in_turn(by_cost, place_of, only_own=is_divided)}
        mine = share.current()
        self._of_others = set(mine.others(by_cost, place_of)) if is_divided and mine and mine.helps else set()
        self._taken: set[str] = set()
        self._rows: dict[str, dict[str, Any]] = {}
        self._order = list(by_key)
        self._lock = threading.Lock()
        self._record = worker_record.of_run(run, stage, {key: _known(item) for key, item in by_key.items()}, costs)
        self.in_turn = list(self._open)
        self.n_reused = 0

    def take(self) -> ClaimedItem | None:
        """Return the next item for this worker; None when all are finished or in hand here.

        Waits while the only items left are being worked on by another process, and takes over
        those whose owner dies or hangs. A process that helps with the parts of others leaves alone what has a row:
        whether that row still holds is looked at by those whose part it is, and by who writes the results.
        """
        wait_s, longest_s = _HELPER_POLL_S if self._of_others else _POLL_S
        while True:
            claimed, others_at_work = self._sweep()
            if claimed is not None:
                return claimed
            if not others_at_work:
                return None
            time.sleep(wait_s)
            wait_s = min(1.2 * wait_s, longest_s)

    def take_if_free(self, key: str) -> ClaimedItem | None:
        """Return the item `key` when it is unfinished and nobody works on it, else None; never waits."""
        with self._lock:
            item = self._open.get(key)
        return None if item is None or item.key in self._taken else self._try(item)[0]

    def _sweep(self) -> tuple[ClaimedItem | None, bool]:
        with self._lock:
            waiting = [item for item in self._open.values() if item.key not in self._taken]
        others_at_work, with_row = False, None
        for item in waiting:
            if item.key in self._of_others:
                if with_row is None:
                    with_row = self._run.row_names(self._stage)
                if self._run.row_path(self._stage, item.key).name in with_row:
                    continue
            claimed, others = self._try(item)
            others_at_work |= others
            if claimed is not None:
                return claimed, others_at_work
        return None, others_at_work

    def _try(self, item: Item) -> tuple[ClaimedItem | None, bool]:
        """Return the item if it is for this worker, and whether another one works on it."""
        if self._is_closed(item):
            return None, False
        claim = try_claim(self._run.claim_path(self._stage, item.key))
        if claim is None:
            return None, True
        if self._is_closed(item):  # finished between the two
            claim.release()
            return None, False
        with self._lock:
            if item.key not in self._taken:
                self._taken.add(item.key)
                self._record.took(item.key)
                return ClaimedItem(item, claim), False
        claim.release()
        return None, False

    def _is_closed(self, item: Item) -> bool:
        """Whether nothing is left to do here: in hand, finished, or found finished now."""
        with self._lock:
            if item.key in self._taken or item.key not in self._open:
                return True
        _ = item.fingerprint  # may take a while, in which other threads go on
        with self._lock:
            if item.key in self._taken or item.key not in self._open:
                return True
            row = self._finished_row(item)
            if row is None:
                return False
            self._close(item, row)
            self.n_reused += 1
            return True

    def _finished_row(self, item: Item) -> dict[str, Any] | None:
        row = self._run.read_row(self._stage, item.key)
        if row is None or row.get("fingerprint") != item.fingerprint:
            return None
        if row.get("status") not in FINISHED:  # one launch tries it once, not once a worker
            return row if row.get("launch") and row["launch"] == worker_record.launch_id() else None
        return row if self._is_intact(item, row) else None

    def _close(self, item: Item, row: dict[str, Any]) -> None:
        self._rows[item.key] = row
        self._open.pop(item.key, None)

    def finish(self, claimed: ClaimedItem, row: dict[str, Any]) -> None:
        """Store the item's row (its files must be in place) and give up the claim.

        A worker that stood still for so long that another took the item over leaves the row to that one. Its files
        do no harm: each was put in place whole, and holds what the other's will hold.
        """
        row = {**row, "fingerprint": claimed.item.fingerprint}
        if row.get("status") not in FINISHED and worker_record.launch_id():
            row["launch"] = worker_record.launch_id()
        key = claimed.item.key
        try:
            if not claimed.claim.is_held():
                with self._lock:
                    self._taken.discard(key)
                self._record.gave_back(key)
                return
            self._run.write_row(self._stage, key, row)
            with self._lock:
                self._close(claimed.item, row)
            self._record.finished(key, str(row.get("status")))
        finally:
            claimed.claim.release()

    def give_back(self, claimed: ClaimedItem) -> None:
        """Give up the claim of an item that was not finished (Ctrl-C, a full disk)."""
        self._record.gave_back(claimed.item.key)
        claimed.claim.release()

    def rows(self) -> list[dict[str, Any]]:
        """Rows of all finished and failed items so far, in the order of the items."""
        with self._lock:
            return [self._rows[key] for key in self._order if key in self._rows]


def _known(item: Item) -> str | None:
    return None if isinstance(item, LateItem) else item.fingerprint
