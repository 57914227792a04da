"""What a check of files finds, and the checks that any kind of file goes through."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["problem", "note"]
OnFile = Callable[[Path], None]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: a problem is to be put right; a note is not.
        path: what it is about, relative to the run.
        text: what is wrong with it.
        redo: the commands that put it right, in order; a broken file is removed first, since a file that
            cannot be told from a good one by its head would otherwise be kept.
    """

    kind: Kind
    path: str
    text: str
    redo: tuple[str, ...] = ()


@dataclass
class RunReport:
    """All findings, and how many files of each sort were looked at."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def problems(self) -> list[Finding]:
        """What must be put right."""
        return [finding for finding in self.findings if finding.kind == "problem"]

    @property
    def notes(self) -> list[Finding]:
        """What is worth knowing."""
        return [finding for finding in self.findings if finding.kind == "note"]

    @property
    def commands(self) -> list[str]:
        """The commands that put everything right, each once, in the order they are to be run."""
        commands = dict.fromkeys(command for finding in self.problems for command in finding.redo)
        return sorted(commands, key=_place_in_order)


def _place_in_order(command: str) -> int:
    starts = ("rm ", "wsi-dino tile", "wsi-dino embed", "wsi-dino mil")
    return next((place for place, start in enumerate(starts) if command.startswith(start)), len(starts))


class FileCheck:
    """Looks at files below one folder and notes what it finds in `report`.

    Args:
        root: the folder; findings name files relative to it.
        on_file: called for each file once it has been looked at.
    """

    def __init__(self, root: Path, on_file: OnFile) -> None:
        self._root, self._on_file = root, on_file
        self.report = RunReport()

    def count(self, what: str, path: Path) -> None:
        """Note that a file of this sort was looked at."""
        self.report.counts[what] = self.report.counts.get(what, 0) + 1
        self._on_file(path)

    def add(self, kind: Kind, path: Path, text: str, *redo: str) -> None:
        """Note something about a file."""
        inside = path.relative_to(self._root).as_posix()
        self.report.findings.append(Finding(kind, inside, text, redo))

    def broken(self, path: Path, text: str, redo: str) -> None:
        """Note a file that must be made anew by `redo`."""
        self.add("problem", path, text, f"rm {quoted(path)}", redo)

    def unreadable(self, path: Path, error: Exception, redo: str) -> None:
        """Note a file that is broken or missing."""
        if path.exists():
            self.broken(path, short_message(error), redo)
        else:
            self.add("problem", path, "missing", redo)

    def check_picture(self, path: Path, redo: str) -> None:
        """Decode a picture wholly."""
        from PIL import Image

        try:
            with Image.open(path) as picture:
                picture.load()
        except FileNotFoundError:
            self.add("problem", path, "missing", redo)
        except (OSError, SyntaxError, ValueError) as error:
            self.broken(path, f"no whole picture ({error})", redo)
        else:
            self.count("pictures", path)

    def read_csv(self, path: Path, redo: str) -> list[dict[str, str]] | None:
        """Return the rows of a table; None, with a finding, when there are none to read."""
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                table = list(csv.DictReader(stream))
        except FileNotFoundError:
            self.add("problem", path, "missing", redo)
            return None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            self.broken(path, f"no table ({error})", redo)
            return None
        self.count("tables", path)
        return table

    def read_json(self, path: Path, redo: str) -> dict[str, Any] | None:
        """Return a JSON object; None, with a finding, when there is none to read."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.add("problem", path, "missing", redo)
            return None
        except (OSError, ValueError) as error:
            self.broken(path, f"no JSON ({error})", redo)
            return None
        self.count("metric files", path)
        return content if isinstance(content, dict) else {}


def quoted(path: Path) -> str:
    """Return `path` as a word of a shell command."""
    return shlex.quote(str(path))


def short_message(error: Exception) -> str:
    """Return an error's message without the path, which stands before it anyway, and without advice."""
    text = str(error)
    head, _, rest = text.partition(": ")
    message = rest if head.startswith("Reading") else text
    for advice in (" Run `wsi-dino", " Delete it and run", " Features of different"):
        message = message.split(advice)[0]
    return message
