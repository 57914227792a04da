"""`wsi-dino radiology`: frozen encoders on radiographs and CT."""

from __future__ import annotations

import typer

from wsi_dino.cli.grouped_help import GroupedCommand
from wsi_dino.cli.radiology_chest import chest_xray
from wsi_dino.cli.radiology_ct import ct


def radiology_app() -> typer.Typer:
    """Return the group of commands."""
    app = typer.Typer(
        name="radiology", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
        help="Probe frozen encoders on chest X-rays and CT.",
    )  # fmt: skip
    app.command("chest-xray", cls=GroupedCommand, help=chest_xray.__doc__)(chest_xray)
    app.command("ct", cls=GroupedCommand, help=ct.__doc__)(ct)
    return app
