"""Options that several verbs share, so that they mean the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


def panel_option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    """Return an option that stands in `panel` of the help page; its default is told by `help`."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


class Device(StrEnum):
    """Where models run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


RunOption = Annotated[
    Path, typer.Option("--run", help="Folder of the run: all results of it lie there.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="Worker threads; 0 = one for each core.")]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where models run; auto takes cuda, then mps, then cpu.")
]
EncodersOption = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        help="Encoder by name (`wsi-dino encoders` lists them); may be repeated.",
        show_default=False,
    ),
]
EncoderOption = Annotated[
    str,
    typer.Option("--encoder", help="Encoder by name (`wsi-dino encoders` lists them).", show_default=False),
]
MODEL_PANEL = "Model and weights"
CheckpointOption = Annotated[
    Path | None, panel_option(MODEL_PANEL, "--weights", help="Checkpoint file of the encoder.")
]
WeightsDirOption = Annotated[
    Path | None,
    panel_option(MODEL_PANEL, "--weights-dir", help="Folder of checkpoints, looked at before cache and hub."),
]
RandomWeightsOption = Annotated[
    int | None,
    panel_option(
        MODEL_PANEL, "--random-weights", help="Seed of an untrained encoder, to see what its training is worth."
    ),
]
