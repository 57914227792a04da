"""Runs the code of a page as its reader would: blocks in order, in one folder, in one session.

====================================== =============================================================================
block                                  what is done
====================================== =============================================================================
``sh``                                 each line must be a ``wsi-dino`` command; it is run, and must end with 0, or
                                       with N where the line ends in ``# exit code N``
``text`` right after ``sh``            must be what those commands printed; ``...`` stands for anything
``python``                             is run; what earlier blocks named is known
``python``, ``# FILE.py``              is written to that file
``python``, ``# wsi_dino/ROOM/X.py``   becomes a module of that room, as a new file there would
``python``, ``# at the end of FILE``   is run inside that module of wsi_dino
``yaml``                               is written to wsi-dino.yaml, or to the file that the first line names
``toml``, ``json``                     must be valid
====================================== =============================================================================

A block after ``<!-- not run: REASON -->`` is left out.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import Ran, run_command

from wsi_dino.encoders.plugins import use_plugin_files
from wsi_dino.evaluation.metrics import METRICS
from wsi_dino.pathology import cohorts
from wsi_dino.pathology.cohorts.cohort_table import cohort_readers

_FENCE = re.compile(r"^(?:<!-- not run: (.*?) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = ("sh", "python", "yaml", "toml", "json")
_INSIDE, _ROOM, _FILE = r"# at the end of (wsi_dino/[\w/]+)\.py", r"# (wsi_dino/[\w/]+)/(\w+)\.py$", r"# ([\w.-]+\.py)$"
_EXIT = re.compile(r"#\s*exit code (\d+)\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        not_run: the reason, where its marker says that it is not run.
    """

    kind: str
    text: str
    not_run: str | None = None

    @property
    def is_code(self) -> bool:
        """Whether it is more than a picture or an output."""
        return self.kind in _CODE


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(kind, text, reason or None) for reason, kind, text in found]


@dataclass
class Session:
    """What a reader has while going through a page.

    Attributes:
        names: words of commands that stand for others here, such as a large encoder for a small one.
        more: for each verb what is typed behind its commands, to keep them short.
        ran: every command line that was run, and how it ended.
    """

    folder: Path
    names: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Sequence[object]] = field(default_factory=dict)
    ran: list[tuple[str, Ran]] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    printed: str = ""

    def run(self, block: Block) -> None:
        """Do with a block what its reader would do."""
        if block.not_run:
            return
        getattr(self, f"_{block.kind or 'nothing'}", self._nothing)(block.text)

    def _nothing(self, text: str) -> None:
        pass

    def _sh(self, text: str) -> None:
        self.printed = ""
        for line in text.replace("\\\n", " ").splitlines():
            expected = _EXIT.search(line)
            words = [self.names.get(word, word) for word in shlex.split(line, comments=True)]
            if not words:
                continue
            assert words[0] == "wsi-dino", f"only wsi-dino is run here, not {line!r}: mark the block as not run"
            verb = words[1] if words[1] != "radiology" else words[2]
            ran = run_command(self.folder, *words[1:], *self.more.get(verb, ()))
            self.ran.append((line, ran))
            self.printed += ran.stdout + ran.stderr
            assert ran.code == int(expected[1] if expected else 0), f"{line}\n{ran.stdout}{ran.stderr}"

    def _text(self, text: str) -> None:
        if self.ran:
            wanted = r"\s+".join(re.escape(word).replace(r"\.\.\.", ".*?") for word in text.split())
            assert re.search(wanted, self.printed, re.DOTALL), f"expected\n{text}\ngot\n{self.printed}"

    def _python(self, text: str) -> None:
        first = text.partition("\n")[0]
        inside, room, file = (re.match(pattern, first) for pattern in (_INSIDE, _ROOM, _FILE))
        if inside:
            module = importlib.import_module(inside[1].replace("/", "."))
            exec(compile(text, first, "exec", dont_inherit=True), vars(module))
        elif room:
            (self.folder / f"{room[2]}.py").write_text(text, encoding="utf-8")
            importlib.import_module(room[1].replace("/", ".")).__path__.append(str(self.folder))
            cohort_readers.cache_clear()
        elif file:
            (self.folder / file[1]).write_text(text, encoding="utf-8")
        else:
            exec(compile(text, "page", "exec", dont_inherit=True), self.known)

    def _yaml(self, text: str) -> None:
        named = re.match(r"# ([\w.-]+\.yaml)\n", text)
        (self.folder / (named[1] if named else "wsi-dino.yaml")).write_text(text, encoding="utf-8")

    def _toml(self, text: str) -> None:
        tomllib.loads(text)

    def _json(self, text: str) -> None:
        json.loads(text)


@contextmanager
def _as_before(folder: Path) -> Iterator[None]:
    """Leave no module of the page, plug-in, metric or cohort behind."""
    metrics, places, modules = dict(METRICS), list(cohorts.__path__), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        use_plugin_files([])
        METRICS.clear()
        METRICS.update(metrics)
        cohorts.__path__[:] = places
        cohort_readers.cache_clear()
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def run_page(
    page: Path, folder: Path, *, names: Mapping[str, str] | None = None,
    more: Mapping[str, Sequence[object]] | None = None, kinds: Sequence[str] = (),
) -> Session:  # fmt: skip
    """Run the blocks of a page, or those of some kinds, in `folder`, which must be the working folder."""
    session = Session(folder, names or {}, more or {})
    with _as_before(folder):
        for block in read_blocks(page):
            if not kinds or block.kind in kinds:
                session.run(block)
    return session
