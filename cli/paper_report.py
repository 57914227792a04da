"""`wsi-dino paper report`: the paper's tables with our figures beside, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption, RunOption


def report(
    run: RunOption,
    add_encoder: Annotated[
        list[str] | None,
        typer.Option("--add-encoder", help="Give this encoder its row in every table, also where nothing was run; "
                     "may be repeated.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write the tables and figures of a run next to the published numbers.

    RUN/report.html is one page that needs nothing else; report.md, report.csv and report.tex hold the same tables,
    RUN/figures/ the pictures as SVG and PNG. Each number of ours is traced to the metrics.json it came from; a cell
    that was not run says why. Exit code 1 when a result was changed after the run, which is then not shown.
    """
    from wsi_dino.paper.report import write_report

    written = write_report(run, add_encoder or [], console.say)
    if as_json:
        console.print_json(
            {"command": "paper report", "files": list(written.paths), "cells": written.counts,
             "changed": written.changed}
        )  # fmt: skip
    else:
        _print(written.paths, written.counts, written.changed)
    console.leave(len(written.changed))


def _print(paths: list[Path], counts: dict[str, int], changed: list[str]) -> None:
    print(", ".join(f"{n} cells {what}" for what, n in counts.items()))
    for text in changed:
        print(f"not shown: {text}")
    print(f"{len(paths)} files; the page is {paths[0]}")
