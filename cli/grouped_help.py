"""`--help` pages with their options under headings."""

from __future__ import annotations

from typing import Any

import click
from typer.core import TyperCommand

_OTHER = "Options"


def help_records(command: Any, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return arguments and options of a command with their help, by the heading each names as ``rich_help_panel``.

    The arguments come first, then each group of options in the order in which it first appears.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            default = "Arguments" if isinstance(parameter, click.Argument) else _OTHER
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
    if _OTHER in groups:
        groups[_OTHER] = groups.pop(_OTHER)
    return groups


class GroupedCommand(TyperCommand):
    """A command that lists its options under the heading each names as ``rich_help_panel``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, then each group of options."""
        for heading, records in help_records(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl(records)
