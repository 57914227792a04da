"""Reading what a network learns from while it learns: in order, a few items ahead, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_One = TypeVar("_One")
_Got = TypeVar("_Got")


def read_ahead(
    read: Callable[[_One], _Got], wanted: Iterable[_One], *, threads: int = 4, ahead: int = 6
) -> Iterator[tuple[_One, _Got]]:
    """Yield each of `wanted` with what `read` makes of it, in order, while the next ones are being read.

    Args:
        read: called in a thread; what it raises is raised here, in its turn.
        wanted: what to read.
        threads: that read.
        ahead: so many are in memory at most.

    Examples:
        >>> list(read_ahead(str, [3, 1, 2]))
        [(3, '3'), (1, '1'), (2, '2')]
    """
    waiting: deque[tuple[_One, Future[_Got]]] = deque()
    todo = iter(wanted)
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        try:
            while True:
                while len(waiting) < ahead and (one := next(todo, waiting)) is not waiting:
                    waiting.append((one, pool.submit(read, one)))  # type: ignore[arg-type]
                if not waiting:
                    return
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
