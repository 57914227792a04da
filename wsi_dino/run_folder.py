"""The folder of one run: which file lies where, and one table row for each item of a stage."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError
from wsi_dino.provenance import write_json_atomically, write_text_atomically

_READERS = 16
_UNSAFE = re.compile(r"[^\w.+@-]")


def safe_name(name: str) -> str:
    """Return `name` as one file name that cannot leave its folder.

    ``/`` becomes ``__``. Any other replaced character adds eight digits of a hash, so that two
    names ("slide (1)", "slide [1]") never share a file.

    Examples:
        >>> safe_name("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
        'timm__vit_tiny_patch16_224.augreg_in21k_ft_in1k'
        >>> safe_name("../../etc")
        '..__..__etc'
        >>> safe_name("slide (1)")
        'slide__1_-d90d74c4'
    """
    parts = name.replace("/", "__")
    safe = _UNSAFE.sub("_", parts) if parts.strip(".") else "_" * len(parts)
    if safe and safe == parts:
        return safe
    return f"{safe}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


class RunFolder:
    """Paths of one run, and the rows that its commands keep about every item.

    Rows lie as small JSON files below ``.state/STAGE/`` (one writer each, hence no lock on a shared
    table); ``write_table`` makes the CSV that people read from them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def tiles(self) -> Path:
        """Folder of ``SLIDE.h5`` tile coordinates."""
        return self.path / "tiles"

    @property
    def contours(self) -> Path:
        """Folder of ``SLIDE.geojson`` tissue contours."""
        return self.path / "contours"

    @property
    def thumbnails(self) -> Path:
        """Folder of ``SLIDE.jpg`` pictures with contours and tiles drawn."""
        return self.path / "thumbnails"

    @property
    def state(self) -> Path:
        """Folder of rows, claims and journals; nothing in it is a result."""
        return self.path / ".state"

    def features(self, encoder: str) -> Path:
        """Folder of ``SLIDE.h5`` feature files of one encoder."""
        return self.path / "features" / safe_name(encoder)

    def mil(self, task: str, encoder: str) -> Path:
        """Folder of the predictions, metrics, models and report of one task and encoder."""
        return self.path / "mil" / safe_name(task) / safe_name(encoder)

    def claim_path(self, stage: str, key: str) -> Path:
        """Path of the lock of one item of one stage."""
        return self.state / "claims" / safe_name(stage) / f"{safe_name(key)}.lock"

    def encoders(self) -> list[str]:
        """Names of the folders below ``features/`` that hold at least one feature file."""
        root = self.path / "features"
        return sorted(folder.name for folder in root.glob("*") if any(folder.glob("*.h5")))

    def require(self) -> RunFolder:
        """Return self, or raise ConfigError when the folder is not there."""
        if not self.path.is_dir():
            advice = "Run `wsi-dino tile SLIDES --run RUN` first, or name the right folder with --run."
            raise ConfigError(f"Opening the run {self.path}: there is no such folder. {advice}")
        return self

    # rows -------------------------------------------------------------------------------------
    def row_path(self, stage: str, key: str) -> Path:
        """Path of the JSON row of one item."""
        return self.state / safe_name(stage) / f"{safe_name(key)}.json"

    def write_row(self, stage: str, key: str, row: Mapping[str, Any]) -> None:
        """Store the row of one item."""
        write_json_atomically(self.row_path(stage, key), row)

    def read_row(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return the row of one item, or None when there is none or it is unreadable."""
        try:
            row = json.loads(self.row_path(stage, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return row if isinstance(row, dict) else None

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """Return all rows of a stage, sorted by file name."""
        keys = sorted(Path(name).stem for name in self.row_names(stage) if name.endswith(".json"))
        with ThreadPoolExecutor(_READERS) as pool:  # a network file system answers many at once
            rows = list(pool.map(lambda key: self.read_row(stage, key), keys))
        return [row for row in rows if row is not None]

    def row_names(self, stage: str) -> set[str]:
        """Return the file names of all rows of a stage, in one look at their folder."""
        try:
            return set(os.listdir(self.state / safe_name(stage)))
        except FileNotFoundError:
            return set()

    def write_table(self, path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
        """Write `rows` as CSV with exactly `columns`; a value that a row lacks is left empty."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
        write_text_atomically(path, buffer.getvalue())
