"""`wsi-dino plan`: what a command would cost, before it runs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.launching import without_launching
from wsi_dino.cli.options import JsonOption
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.cli.plan_samples import Estimate

_SHORT_H = 1.0


def plan(
    ctx: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND ...", show_default=False,
            help="The command as it would be typed without `wsi-dino`; options of `plan` come before it.",
        ),
    ],
    sample_s: Annotated[
        float, typer.Option("--sample-s", min=0.1, help="Seconds of work to measure here, each encoder and stage.")
    ] = 5.0,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            "--rate", metavar="DEVICE=IMAGES_PER_S", show_default=False,
            help="What `plan` measured on a machine of another class; may be repeated.",
        ),
    ] = None,
    within_h: Annotated[
        float, typer.Option("--within-h", min=0.1, help="Hours in which it should be done; decides how many workers.")
    ] = 24.0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Tell what a command would take: items, tiles, hours for each device class, disk, memory, and how to launch it.

    Hours come from a short measured sample on this machine, and from --rate for others; nothing is written to the
    run. Knows tile, embed, mil and radiology chest-xray, ct, segment, em.
    """
    from wsi_dino.cli.plan_samples import SAMPLES

    words, inner = _parsed(ctx, command)
    if words not in SAMPLES:
        raise ConfigError(f"plan: {words} is not planned. Known: {', '.join(SAMPLES)}.")
    estimate = SAMPLES[words](inner, sample_s)
    told = _Told(estimate, _rates(rate or []), within_h, without_launching(command), words)
    if as_json or inner.params.get("as_json"):
        console.print_json(told.record())
    else:
        told.show()


def _parsed(ctx: typer.Context, command: Sequence[str]) -> tuple[str, Any]:
    """Return the words of the command and its options, parsed as if it were called."""
    above: Any = ctx.find_root()
    group, words, rest = above.command, [], list(command)
    while True:
        if not rest or (found := group.get_command(above, rest[0])) is None:
            known = ", ".join(group.list_commands(above))
            raise ConfigError(f"plan: {' '.join(rest[:1]) or 'nothing'} is no command. Known here: {known}.")
        words.append(rest.pop(0))
        if not hasattr(found, "list_commands"):
            return " ".join(words), found.make_context(words[-1], rest, parent=above)
        above = found.make_context(words[-1], [], parent=above, resilient_parsing=True)
        group = found


def _rates(texts: Sequence[str]) -> dict[str, float]:
    rates = {}
    for text in texts:
        name, sign, value = text.rpartition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            sign = ""
        if not sign or not rates[name] > 0:
            raise ConfigError(f"--rate {text}: expected DEVICE=IMAGES_PER_S, as in H200=1800.")
    return rates


@dataclass(frozen=True)
class _Told:
    """An estimate as people and programs read it."""

    estimate: Estimate
    rates: dict[str, float]
    within_h: float
    arguments: tuple[str, ...]
    words: str

    def hours(self) -> dict[str, float | None]:
        """Hours of one worker by device class; None where nothing could be measured."""
        images = self.estimate.images
        return {**self.estimate.hours, **{name: images / each / 3600 for name, each in self.rates.items() if images}}

    def launch(self) -> str:
        """Return the line to type."""
        known = [(hours, device) for device, hours in self.hours().items() if hours is not None]
        hours, device = min(known) if known else (0.0, "cpu")
        words = ["wsi-dino", *self.arguments]
        n_workers = max(1, min(math.ceil(hours / self.within_h), max(1, self.estimate.items)))
        if n_workers == 1:
            return shlex.join(words if hours <= _SHORT_H else [*words, "--launcher", "local"])
        gpu = [] if device.startswith("cpu") else ["--launch", "gpus=1"]
        return shlex.join([*words, "--launcher", "slurm", "--launch-workers", str(n_workers), *gpu])

    def record(self) -> dict[str, Any]:
        """Return the one JSON object."""
        e = self.estimate
        return {
            "command": f"plan {self.words}", "items": e.items, "item": e.item, "tiles": e.tiles, "images": e.images,
            "hours": self.hours(), "measured": e.measured, "disk_bytes": e.disk_bytes, "memory_bytes": e.memory_bytes,
            "not_counted": e.not_counted, "launch": self.launch(),
        }  # fmt: skip

    def show(self) -> None:
        """Print it."""
        e = self.estimate
        counted = f", {e.tiles} tiles" if e.tiles else f", {e.images} images" if e.images else ""
        print(f"{e.items} {e.item}{counted}")
        for device, hours in self.hours().items():
            print(f"{device}: " + ("hours are not known" if hours is None else f"{hours:.3g} h for one worker"))
        for line in e.measured:
            print(f"measured: {line}")
        if e.disk_bytes is not None:
            print(f"disk: {e.disk_bytes / 1e9:.3g} GB of results")
        if e.memory_bytes:
            print(f"memory: {e.memory_bytes / 1e9:.2f} GB a worker, as in the sample")
        for line in e.not_counted:
            print(f"not counted: {line}")
        print(f"to be done within {self.within_h:g} h: {self.launch()}")
