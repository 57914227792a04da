"""The documentation's page of the command line, made from the program: `python -m wsi_dino.cli.reference`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from wsi_dino.cli.grouped_help import help_records

_PROGRAM = "wsi-dino"


def reference_page() -> str:
    """Return Markdown: a table of all commands, then each with its text and its options.

    Examples:
        >>> page = reference_page()
        >>> "## wsi-dino radiology em" in page and "`--random-weights INTEGER`" in page
        True
    """
    found = list(_commands())
    listed = [f"| [`{name}`](#{_anchor(name)}) | {_cell(_first_sentence(command))} |" for name, command in found]
    sections = [_section(name, command) for name, command in found]
    return "\n".join(["| command | what it does |", "|---|---|", *listed, "", *sections])


def _commands() -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with its full name, in the order of `--help`."""
    from wsi_dino.cli.app import app, register_verbs

    register_verbs()
    waiting = [(_PROGRAM, typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        inside = getattr(command, "commands", None)
        if inside is None:
            yield name, command
        else:
            waiting[:0] = [(f"{name} {word}", each) for word, each in inside.items()]


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    parts = [f"## {name}", "", *_paragraphs(command), f"```text\n{usage}\n```", ""]
    for heading, records in help_records(command, context).items():
        parts += [f"| {heading} | |", "|---|---|"]
        parts += [f"| `{option.replace('|', '/')}` | {_cell(text)} |" for option, text in records]
        parts.append("")
    return "\n".join(parts)


def _paragraphs(command: Any) -> list[str]:
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    return [f"{_escaped(paragraph)}\n" for paragraph in text.split("\n\n")]


def _first_sentence(command: Any) -> str:
    return re.split(r"(?<=\.)\s", inspect.cleandoc(command.help or ""))[0]


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Escape what Markdown would take for its own, but for what stands between backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    print(reference_page())
