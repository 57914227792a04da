"""What lies in a downloaded folder, compared with what its publisher puts there."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from wsi_dino.errors import CohortError

_LIKE = 0.75
_UNPACKED = (".zip", ".tar", ".gz", ".rar", ".7z", ".part", ".crdownload", ".aria2")


@dataclass(frozen=True)
class Found:
    """Slides of a download.

    Attributes:
        paths: file of each expected slide that is there, by the slide's official name.
        missing: official place of each slide that is not, with what stands there instead.
        others: slide files that are none of the expected ones.
        elsewhere: expected slides that lie in another folder than the official one.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


class Download:
    """The files below a folder, found once.

    Args:
        folder: as downloaded.
        cohort: its name, for messages.

    Raises:
        CohortError: there is no such folder.
    """

    def __init__(self, folder: Path, cohort: str) -> None:
        if not folder.is_dir():
            raise CohortError(f"Reading {cohort} in {folder}: there is no such folder.")
        self.folder, self.cohort = folder, cohort
        self._files: list[Path] = []
        for top, subfolders, names in os.walk(folder, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            self._files += [Path(top) / name for name in sorted(names) if not name.startswith(".")]

    def relative(self, path: Path) -> str:
        """Return a path as seen from the folder."""
        return path.relative_to(self.folder).as_posix()

    def find(self, places: Iterable[str]) -> Path | None:
        """Return the first of `places` that is there, or None; upper and lower case count as one."""
        return next((self._by_place[place.lower()] for place in places if place.lower() in self._by_place), None)

    @cached_property
    def _by_place(self) -> dict[str, Path]:
        return {self.relative(path).lower(): path for path in self._files}

    def require(self, *places: str, what: str) -> Path:
        """Return the first of `places` that is there; upper and lower case count as one.

        Raises:
            CohortError: none is; names what was expected, and a file like it that is there.
        """
        found = self.find(places)
        if found is not None:
            return found
        expected = " or ".join(places)
        raise CohortError(
            f"Reading {self.cohort} in {self.folder}: {what} is missing, expected {expected}."
            f"{self._instead(places, self._files)}"
        )

    def find_slides(
        self, expected: Mapping[str, str], suffixes: tuple[str, ...], not_below: tuple[str, ...] = ()
    ) -> Found:
        """Look for slides by name, first in their official place, then anywhere below the folder.

        Args:
            expected: official place of each slide, by its name without ending (lower case).
            suffixes: endings of slide files, lower case.
            not_below: names of folders, lower case, that hold other pictures.
        """
        by_name: dict[str, list[Path]] = {}
        for path in self._files:
            parents = {part.lower() for part in path.relative_to(self.folder).parent.parts}
            if path.suffix.lower() in suffixes and not parents & set(not_below):
                by_name.setdefault(path.stem.lower(), []).append(path)
        found = Found()
        for name, place in expected.items():
            here = [path for path in by_name.get(name, []) if path.stat().st_size > 0]
            if not here:
                continue
            official = [path for path in here if self.relative(path).lower() == place.lower()]
            found.paths[name] = (official or here)[0]
            if not official:
                found.elsewhere.append(name)
        found.others.extend(path for name, paths in by_name.items() if name not in expected for path in paths)
        for name, place in expected.items():
            if name not in found.paths:
                found.missing.append(place + self._why(name, place, by_name, found.others))
        return found

    def _why(self, name: str, place: str, by_name: Mapping[str, list[Path]], others: list[Path]) -> str:
        if name in by_name:
            return " (there, but empty)"
        packed = [path for path in self._files if path.stem.lower() in (name, Path(place).name.lower())]
        packed = [path for path in packed if path.suffix.lower() in _UNPACKED]
        if packed:
            return f" (there is {self.relative(packed[0])}: not unpacked, or not finished)"
        renamed = [path for path in others if _plain_name(path.stem) == _plain_name(name)]
        return f" (there is {self.relative(renamed[0])}: rename it)" if renamed else ""

    def _instead(self, places: Iterable[str], candidates: list[Path]) -> str:
        by_name = {path.name.lower(): path for path in candidates}
        for place in places:
            name = Path(place).name.lower()
            close = [name] if name in by_name else difflib.get_close_matches(name, by_name, n=1, cutoff=_LIKE)
            if close:
                return f" There is {self.relative(by_name[close[0]])}: put it there under the official name."
        return ""


def _plain_name(name: str) -> str:
    """Return a name without case, signs and leading zeros: ``Tumor (8)`` and ``tumor_008`` are alike."""
    return "".join(part.lstrip("0") or part[:1] for part in re.findall(r"[a-z]+|[0-9]+", name.lower()))


def read_csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Read a table of commas or semicolons as ``(line, cells)``; empty lines are passed over.

    Raises:
        CohortError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"Reading {path}: not UTF-8 text, or not readable ({error}).") from error
    delimiter = max((",", ";", "\t"), key=text.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
