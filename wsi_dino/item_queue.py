"""Work through the items of a stage once each, whatever is killed, resumed or started twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wsi_dino.claims import Claim, try_claim
from wsi_dino.run_folder import RunFolder

FINISHED = ("done", "empty")
_POLL_S = 0.1


@dataclass(frozen=True)
class Item:
    """One unit of work: `fingerprint` covers everything that can change its result."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class ClaimedItem:
    """An item this worker alone may work on until `ItemQueue.finish` or `ItemQueue.give_back`."""

    item: Item
    claim: Claim


class ItemQueue:
    """Hands each item to one worker, over threads and processes that share a run folder.

    An item is complete when its stored row has the same fingerprint, a status of `FINISHED` and
    `is_intact` finds its files. A failed item is tried again by the next command, not twice by one.

    Args:
        run: the run folder.
        stage: name under which rows and claims are stored, e.g. ``"tile"``.
        items: what is to be done, in order; keys are unique.
        is_intact: looks at the files that a finished row promises.
    """

    def __init__(
        self,
        run: RunFolder,
        stage: str,
        items: Sequence[Item],
        is_intact: Callable[[Item, dict[str, Any]], bool] = lambda item, row: True,
    ) -> None:
        self._run = run
        self._stage = stage
        self._is_intact = is_intact
        self._open: dict[str, Item] = {item.key: item for item in items}
        self._taken: set[str] = set()
        self._rows: dict[str, dict[str, Any]] = {}
        self._order = [item.key for item in items]
        self._lock = threading.Lock()
        self.n_reused = 0

    def take(self) -> ClaimedItem | None:
        """Return the next item for this worker; None when all are finished or in hand here.

        Waits while the only items left are being worked on by another process, and takes over
        those whose owner dies.
        """
        while True:
            claimed, others_at_work = self._sweep()
            if claimed is not None:
                return claimed
            if not others_at_work:
                return None
            time.sleep(_POLL_S)

    def take_if_free(self, key: str) -> ClaimedItem | None:
        """Return the item `key` when it is unfinished and nobody works on it, else None; never waits."""
        with self._lock:
            item = self._open.get(key)
        return None if item is None or item.key in self._taken else self._try(item)[0]

    def _sweep(self) -> tuple[ClaimedItem | None, bool]:
        with self._lock:
            waiting = [item for item in self._open.values() if item.key not in self._taken]
        others_at_work = False
        for item in waiting:
            claimed, others = self._try(item)
            others_at_work |= others
            if claimed is not None:
                return claimed, others_at_work
        return None, others_at_work

    def _try(self, item: Item) -> tuple[ClaimedItem | None, bool]:
        claim = try_claim(self._run.claim_path(self._stage, item.key))
        if claim is None:
            return None, True
        with self._lock:
            if item.key in self._taken or item.key not in self._open:
                claim.release()
                return None, False
            row = self._finished_row(item)
            if row is None:
                self._taken.add(item.key)
                return ClaimedItem(item, claim), False
            self._close(item, row)
            self.n_reused += 1
        claim.release()
        return None, False

    def _finished_row(self, item: Item) -> dict[str, Any] | None:
        row = self._run.read_row(self._stage, item.key)
        if row is None or row.get("fingerprint") != item.fingerprint or row.get("status") not in FINISHED:
            return None
        return row if self._is_intact(item, row) else None

    def _close(self, item: Item, row: dict[str, Any]) -> None:
        self._rows[item.key] = row
        self._open.pop(item.key, None)

    def finish(self, claimed: ClaimedItem, row: dict[str, Any]) -> None:
        """Store the item's row (its files must be in place) and give up the claim."""
        row = {**row, "fingerprint": claimed.item.fingerprint}
        try:
            self._run.write_row(self._stage, claimed.item.key, row)
            with self._lock:
                self._close(claimed.item, row)
        finally:
            claimed.claim.release()

    def give_back(self, claimed: ClaimedItem) -> None:
        """Give up the claim of an item that was not finished (Ctrl-C, a full disk)."""
        claimed.claim.release()

    def rows(self) -> list[dict[str, Any]]:
        """Rows of all finished and failed items so far, in the order of the items."""
        with self._lock:
            return [self._rows[key] for key in self._order if key in self._rows]
