"""Single-threaded lanes side by side: the way small matrix work fills all cores of a processor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from wsi_dino.mil.packed import Workspace

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lanes:
    """Runs a function over items in parallel, each lane with a workspace of its own.

    An item is worked on by one thread from start to end and results come in the order of the
    items, so nothing depends on the number of lanes.
    """

    def __init__(self, executor: ThreadPoolExecutor | None, device: torch.device) -> None:
        self._executor = executor
        self._device = device
        self._local = threading.local()

    def map(self, function: Callable[[_Item, Workspace], _Result], items: Sequence[_Item]) -> list[_Result]:
        """Return ``function(item, workspace)`` of each item, in order; items are begun in order too."""
        if self._executor is None or len(items) == 1:
            return [function(item, self._workspace()) for item in items]
        return list(self._executor.map(lambda item: function(item, self._workspace()), items))

    def _workspace(self) -> Workspace:
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace(self._device)
        space: Workspace = self._local.workspace
        return space


@contextmanager
def open_lanes(device: torch.device, threads: int | None = None) -> Iterator[Lanes]:
    """Give lanes for a while: one a thread on a CPU, a single one on an accelerator.

    Args:
        device: where the work runs.
        threads: lanes on a CPU; None = as many as torch would use.
    """
    if device.type != "cpu":
        yield Lanes(None, device)
        return
    before = torch.get_num_threads()
    n_lanes = threads or before
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_lanes, "mil-lane", initializer=torch.set_num_threads, initargs=(1,)) as executor:
            yield Lanes(executor if n_lanes > 1 else None, device)
    finally:
        torch.set_num_threads(before)
