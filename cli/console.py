"""What a verb says and how it ends: progress and messages on stderr, results on stdout, exit codes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from wsi_dino.cli.interrupts import INTERRUPTED
from wsi_dino.errors import WsiDinoError
from wsi_dino.heartbeat import note_progress
from wsi_dino.provenance import plain_value, without_nan

_PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """How long work reports on itself; `total` may be set late and `text` names what is in hand."""

    def __call__(self, advance: float = 0, *, total: float | None = None, text: str | None = None) -> None:
        """Move on by `advance` units."""


def say(message: str) -> None:
    """Print a line for the reader, on stderr."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: float | None = None, unit: str = "slides") -> Iterator[Progress]:
    """Show a bar on stderr, or a line every ten seconds when stderr is not a terminal."""
    if sys.stderr.isatty():
        yield from _bar(title, total, unit)
    else:
        yield _noted(_Lines(title, total, unit))


def _noted(report: Progress) -> Progress:
    """Return `report` as a sign of life, too."""

    def noted(advance: float = 0, *, total: float | None = None, text: str | None = None) -> None:
        note_progress()
        report(advance, total=total, text=text)

    return noted


def _bar(title: str, total: float | None, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, text="")

        def report(advance: float = 0, *, total: float | None = None, text: str | None = None) -> None:
            changed: dict[str, Any] = {"total": total, "text": text}
            bar.update(task, advance=advance, **{key: value for key, value in changed.items() if value is not None})

        yield _noted(report)


class _Lines:
    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._text = 0.0, ""
        self._last = time.monotonic()

    def __call__(self, advance: float = 0, *, total: float | None = None, text: str | None = None) -> None:
        self._done += advance
        self._total = total if total is not None else self._total
        self._text = text if text is not None else self._text
        if time.monotonic() - self._last >= _PLAIN_EVERY_S:
            self._last = time.monotonic()
            of = "" if self._total is None else f" of {self._total:g}"
            say(f"{self._title}: {self._done:g}{of} {self._unit} {self._text}".rstrip())


def print_json(value: Mapping[str, Any]) -> None:
    """Print the verb's one JSON object on stdout."""
    print(json.dumps(without_nan(value), default=plain_value), flush=True)


def print_table(rows: list[Mapping[str, Any]], columns: list[str]) -> None:
    """Print rows as an aligned text table on stdout; floats with three decimals."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells), 0) for i, column in enumerate(columns)]
    for line in [columns, ["-" * width for width in widths], *cells]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def leave(n_failed: int) -> None:
    """End the program with 1 when items failed; return otherwise."""
    if n_failed:
        sys.exit(1)


def fail(error: WsiDinoError, *, as_json: bool) -> NoReturn:
    """Say what is wrong and leave with 2."""
    say(f"error: {error}")
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": str(error)}, "exit_code": 2})
    sys.exit(2)


def fail_usage(error: Exception, *, as_json: bool) -> NoReturn:
    """Leave with 2 after the command line itself was wrong, which has been said on stderr."""
    if as_json:
        message = getattr(error, "format_message", lambda: str(error))()
        print_json({"error": {"type": "UsageError", "message": message}, "exit_code": 2})
    sys.exit(2)


def interrupted(*, as_json: bool) -> NoReturn:
    """Say that nothing is lost and leave with 130."""
    say("interrupted: finished work is kept; the same command carries on from here.")
    if as_json:
        print_json({"error": {"type": "KeyboardInterrupt", "message": "interrupted"}, "exit_code": INTERRUPTED})
    sys.exit(INTERRUPTED)
