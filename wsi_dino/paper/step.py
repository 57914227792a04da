"""One command of a plan, what it leaves, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN_MARK = "RUN"
"""How a run's own folder is written in what is kept: results hold no path of this machine."""


@dataclass(frozen=True)
class ResultKey:
    """What a result is of.

    Attributes:
        dataset: name in ROOTS.yaml.
        variant: which of several results of one encoder: a task, a probe, the channels; may be empty.
        encoder: name.
    """

    dataset: str
    variant: str
    encoder: str


@dataclass(frozen=True)
class Step:
    """A command line, once.

    Attributes:
        key: unique in a plan; a file name.
        kind: which track.
        dataset: whose.
        encoder: whose; empty for steps that all encoders share.
        command: words after ``wsi-dino``; paths are absolute.
        results: path of each ``metrics.json`` below the run.
        outputs: further files that must be there, below the run.
        needs: keys of steps that must be done before.
        inputs: folders and files that are read, whose change makes the step be done again.
    """

    key: str
    kind: str
    dataset: str
    encoder: str
    command: tuple[str, ...]
    results: Mapping[ResultKey, Path] = field(default_factory=dict)
    outputs: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()

    def shown(self, run: Path, roots: Mapping[str, Path]) -> str:
        """Return the command line with ``RUN`` and ``DATA[name]`` for the folders of this machine."""
        import shlex

        places = [(str(run), RUN_MARK)]
        places += [(str(root), f"DATA[{name}]") for name, root in roots.items()]
        places.sort(key=lambda place: -len(place[0]))
        return " ".join(["wsi-dino", *(shlex.quote(_replaced(word, places)) for word in self.command)])


def _replaced(word: str, places: Sequence[tuple[str, str]]) -> str:
    for folder, mark in places:
        if word == folder or word.startswith(f"{folder}/"):
            return mark + word[len(folder) :]
    return word


def flags(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line.

    Examples:
        >>> flags({"epochs": 3, "partial": True, "report": False, "k": [5, 20]})
        ['--epochs', '3', '--partial', '--no-report', '--k', '5', '--k', '20']
    """
    words: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
            continue
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{name}", str(item)]
    return words
