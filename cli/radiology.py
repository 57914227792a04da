"""`wsi-dino radiology`: frozen encoders on radiographs, CT, MRI and PET."""

from __future__ import annotations

import typer

from wsi_dino.cli.grouped_help import GroupedCommand
from wsi_dino.cli.launching import Cores, launched
from wsi_dino.cli.radiology_chest import chest_xray
from wsi_dino.cli.radiology_ct import ct
from wsi_dino.cli.radiology_em import em
from wsi_dino.cli.radiology_segment import segment
from wsi_dino.cli.radiology_segment_more import segment_export, segment_predict


def radiology_app() -> typer.Typer:
    """Return the group of commands."""
    app = typer.Typer(
        name="radiology", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
        help="Probe frozen encoders on chest X-rays and CT, and segment volumes with them.",
    )  # fmt: skip
    for name, verb in {"chest-xray": chest_xray, "ct": ct, "em": em, "segment": segment}.items():
        app.command(name, cls=GroupedCommand, help=verb.__doc__)(
            launched(f"radiology {name}", verb, Cores.all if verb in (em, segment) else Cores.shared)
        )
    app.command("segment-predict", cls=GroupedCommand, help=segment_predict.__doc__)(segment_predict)
    app.command("segment-export", cls=GroupedCommand, help=segment_export.__doc__)(segment_export)
    return app
