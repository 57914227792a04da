"""`wsi-dino encoders`: what is known of each encoder, without loading any; `encoders check` puts one to the test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.embed import PrecisionName
from wsi_dino.cli.encoder_check import CheckRequest, check_encoders
from wsi_dino.cli.options import Device, DeviceOption, JsonOption
from wsi_dino.errors import ConfigError


def _checking(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="With check", show_default=False)


def encoders(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME | check NAME...]",
            help="One encoder; without it, all. Any model of timm is timm/NAME. After `check`: those to check.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        _checking("--weights", help="Checkpoint to check with; else one on this machine, else random ones."),
    ] = None,
    random_weights: Annotated[int | None, _checking("--random-weights", help="Seed of untrained weights.")] = None,
    px: Annotated[int | None, _checking("--px", help="Side of the square the network sees; else the record's.")] = None,
    precision: Annotated[PrecisionName, _checking("--precision", help="Number format.")] = PrecisionName.auto,
    device: DeviceOption = Device.auto,
    known: Annotated[
        Path | None, _checking("--known", help="File of known vectors to compare with, else ours.")
    ] = None,
    write_known: Annotated[
        Path | None, _checking("--write-known", help="File to keep the known vector in, for later checks.")
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page of the documentation: a table of all.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the encoders, show the record of one, or check one.

    A record tells dimension, preprocessing, pooling, licence and source. `wsi-dino encoders check NAME` measures
    whether an encoder, also one of yours, does what every encoder must, and leaves with 1 when it does not.
    """
    if words and words[0] == "check":
        request = CheckRequest(weights, random_weights, px, device.value, precision.value, known, write_known)
        check_encoders(words[1:], request, as_json=as_json)
        return
    if len(words or ()) > 1:
        raise ConfigError(f"wsi-dino encoders {' '.join(words or ())}: expected one NAME, or `check NAME`.")
    name = words[0] if words else None
    if name is None:
        _list_all(as_markdown=as_markdown, as_json=as_json)
        return
    from wsi_dino.encoders.registry import get_record

    record = get_record(name).model_dump(mode="json")
    if as_json:
        console.print_json(record)
        return
    for key, value in record.items():
        text = " ".join(value) if key == "obligations" else _plain(value)
        print(f"{key:20s}  {text}".rstrip())


def _list_all(*, as_markdown: bool, as_json: bool) -> None:
    from wsi_dino.encoders.record_table import SHORT_COLUMNS, markdown_page, short_rows
    from wsi_dino.encoders.registry import builtin_records, name_patterns, records

    if as_json:
        console.print_json({"encoders": [record.model_dump(mode="json") for record in records()]})
    elif as_markdown:
        print(markdown_page(builtin_records(), name_patterns()), end="")
    else:
        console.print_table(short_rows(records()), list(SHORT_COLUMNS))
        console.say("M: millions of parameters. paper: a row of the benchmark's tables. One whole: `encoders NAME`.")
        for sentence in name_patterns():
            console.say(sentence.replace("``", "`"))


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return "" if value is None else str(value)
