"""The command line: one verb a file, no science inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves by SystemExit, see `wsi_dino.cli.app.main`.

    Args:
        arguments: words after ``wsi-dino``; None: those of this process, which has nothing else to do.
    """
    from wsi_dino.cli.interrupts import run_program

    if arguments is None:
        run_program(_load)
    else:
        _load()(arguments)


def _load() -> Callable[[list[str] | None], None]:
    from wsi_dino.cli.app import main as program

    return program
