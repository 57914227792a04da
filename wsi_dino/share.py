"""Which part of a run's items this process works on, when several processes share the run.

It belongs to the process, like the GPUs that it may see: every `ItemQueue` made here follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wsi_dino.errors import ConfigError

_Key = TypeVar("_Key")


@dataclass
class Share:
    """Part `part` of `whole`, counted from 1.

    Attributes:
        helps: when its own part is done, it works on what the others have left, too.
        tally: rows of the finished part by stage, for the last word.
    """

    part: int
    whole: int
    helps: bool = False
    tally: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.part}/{self.whole}{'+' if self.helps else ''}"

    def own(self, keys: Sequence[_Key], place_of: Mapping[_Key, int] | None = None) -> list[_Key]:
        """Return every `whole`-th of `keys`, so that parts of a list sorted by cost cost about the same.

        Args:
            keys: in the order of taking.
            place_of: what is counted instead of their places, where some of all keys are not here.
        """
        return [key for place, key in enumerate(keys) if self._is_own(place_of[key] if place_of else place)]

    def others(self, keys: Sequence[_Key], place_of: Mapping[_Key, int] | None = None) -> list[_Key]:
        """Return the rest."""
        return [key for place, key in enumerate(keys) if not self._is_own(place_of[key] if place_of else place)]

    def _is_own(self, place: int) -> bool:
        return place % self.whole == self.part - 1


class PartDone(Exception):
    """The part of this process is done: results are written by a process that has no part."""


_current: list[Share] = []


def parse_share(text: str) -> Share:
    """Return what ``I/N`` or ``I/N+`` means.

    Raises:
        ConfigError: it is neither.

    Examples:
        >>> parse_share("2/8").own(list(range(20)))
        [1, 9, 17]
        >>> str(parse_share("2/8+"))
        '2/8+'
    """
    part, slash, whole = text.removesuffix("+").partition("/")
    if not slash or not part.isdecimal() or not whole.isdecimal() or not 1 <= int(part) <= int(whole):
        raise ConfigError(
            f"--shard {text}: expected I/N with I from 1 to N, as in 3/8, or 3/8+ to help the others then."
        )
    return Share(int(part), int(whole), text.endswith("+"))


def current() -> Share | None:
    """Return the share of this process; None when it works on everything."""
    return _current[-1] if _current else None


@contextmanager
def using(share: Share | None) -> Iterator[Share | None]:
    """Let this process work on `share` for as long as the block lasts."""
    if share is None:
        yield None
        return
    _current.append(share)
    try:
        yield share
    finally:
        _current.pop()


def in_turn(keys: Sequence[_Key], place_of: Mapping[_Key, int] | None = None, *, only_own: bool = False) -> list[_Key]:
    """Return `keys` in the order in which this process takes them: its own, then those of the others.

    Args:
        keys: of all items, the costliest first where costs are known.
        place_of: as of `Share.own`.
        only_own: leave out those of the others, unless the share helps with them.
    """
    share = current()
    if share is None:
        return list(keys)
    others = share.others(keys, place_of) if share.helps or not only_own else []
    return [*share.own(keys, place_of), *others]


def end_part(stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """End the work of a process that has a part, now that all of it is done; of one without, do nothing.

    Raises:
        PartDone: this process has a part.
    """
    share = current()
    if share is not None:
        share.tally[stage] = list(rows)
        raise PartDone


@contextmanager
def one_part() -> Iterator[None]:
    """Go on behind the block when a part of it ended: the next one has a part for this process, too."""
    with suppress(PartDone):
        yield


def end_all_parts() -> None:
    """End a process that has a part and has worked on all of it.

    Raises:
        PartDone: this process has a part.
    """
    if current() is not None:
        raise PartDone
