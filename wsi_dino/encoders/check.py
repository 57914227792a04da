"""One check of an encoder and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsi_dino.errors import WsiDinoError


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: what was checked, in a word or two.
        passed: None when it could not be checked, which `measured` explains.
        measured: what was found, in words and figures.
    """

    name: str
    passed: bool | None
    measured: str


class Broken(Exception):
    """What was checked does not hold; the message says what was found."""


class NotChecked(Exception):
    """The check does not apply here; the message says why."""


def outcome(name: str, check: Callable[..., str], *arguments: Any) -> Check:
    """Return what came of `check`, which returns what it measured, or raises `Broken` or `NotChecked`.

    Any other error inside it is a failure of the encoder, whose code is not ours when it is a plug-in.

    Examples:
        >>> outcome("sum", lambda a, b: f"{a + b}", 1, 2)
        Check(name='sum', passed=True, measured='3')
        >>> outcome("sum", lambda a, b: f"{a + b}", 1, "2").passed
        False
    """
    try:
        return Check(name, True, check(*arguments))
    except NotChecked as reason:
        return Check(name, None, f"not checked: {reason}")
    except (Broken, WsiDinoError) as error:
        return Check(name, False, str(error))
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def require(holds: bool, found: str) -> None:
    """Raise `Broken` with what was found unless it holds."""
    if not holds:
        raise Broken(found)
