"""`--help` pages with their options under headings."""

from __future__ import annotations

import click
from typer.core import TyperCommand

_OTHER = "Options"


class GroupedCommand(TyperCommand):
    """A command that lists its options under the heading each names as ``rich_help_panel``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, then each group of options in the order in which it first appears."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if isinstance(parameter, click.Argument) else _OTHER
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        if _OTHER in groups:
            groups[_OTHER] = groups.pop(_OTHER)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
