"""`wsi-dino encoders`: what is known of each encoder, without loading any."""

from __future__ import annotations

from typing import Annotated

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption

_COLUMNS = ["name", "embed_dim", "input_px", "pooling", "parameters_m", "gated", "licence", "source"]


def encoders(
    name: Annotated[
        str | None, typer.Argument(help="One encoder; without it, all. Any model of timm is timm/NAME.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the encoders, or show the record of one.

    A record tells dimension, preprocessing, pooling, licence and source.
    """
    from wsi_dino.encoders.registry import get_record, records

    if name is None:
        rows = [record.model_dump(mode="json") for record in records()]
        if as_json:
            console.print_json({"encoders": rows})
        else:
            console.print_table(rows, _COLUMNS)
        return
    record = get_record(name).model_dump(mode="json")
    if as_json:
        console.print_json(record)
        return
    for key, value in record.items():
        print(f"{key:20s}  {_plain(value)}".rstrip())


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return "" if value is None else str(value)
