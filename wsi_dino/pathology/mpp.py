"""How large a pixel of a slide is, and who says so. Nothing is guessed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_dino.errors import ConfigError, MissingMppError
from wsi_dino.pathology.slide import Slide

Mpp = float | tuple[float, float]


@dataclass(frozen=True)
class ResolvedMpp:
    """um/px at level 0 as (x, y), and its source: ``"openslide.mpp-x"``, ``"mpp table"``, ``"assumed"`` ..."""

    mpp_xy: tuple[float, float]
    source: str


def resolve_mpp(
    slide: Slide,
    *,
    table: Mapping[str, Mpp] | None = None,
    trust_table: bool = False,
    assume_mpp: float | None = None,
) -> ResolvedMpp:
    """Return the resolution of `slide` from the first of: its file, `table`, `assume_mpp`.

    Args:
        slide: the opened slide; its own word is ``slide.file_mpp`` (properties, then TIFF tags).
        table: um/px by slide_id, from `read_mpp_table`.
        trust_table: let the table win over the file.
        assume_mpp: um/px for slides that nothing else speaks of.

    Raises:
        MissingMppError: none of them says anything.
    """
    in_table = None if table is None else table.get(slide.slide_id)
    if in_table is not None and (trust_table or slide.file_mpp is None):
        return ResolvedMpp(_as_pair(in_table), "mpp table")
    if slide.file_mpp is not None:
        return ResolvedMpp(slide.file_mpp, slide.file_mpp_source)
    if assume_mpp is not None:
        return ResolvedMpp(_as_pair(assume_mpp), "assumed")
    looked = "" if table is None else f"; no row for {slide.slide_id!r} in the mpp table ({len(table)} rows)"
    raise MissingMppError(
        f"{slide.slide_id}: no resolution (um/px). Looked in {slide.path}: {slide.file_mpp_source}{looked}. "
        "Give --mpp-table CSV (slide_id,mpp) or --assume-mpp 0.25, or tile by pixels with --mpp native or --level N."
    )


def read_mpp_table(csv_path: Path) -> dict[str, Mpp]:
    """Read um/px by slide from a CSV with the columns ``slide_id,mpp`` (optional: ``mpp_y``).

    Raises:
        ConfigError: the file or a column is missing, a number is bad, a slide stands there twice; names the line.
    """
    try:
        with csv_path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            _check_columns(csv_path, reader.fieldnames)
            return _collect(csv_path, reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"Reading the mpp table {csv_path}: {getattr(error, 'strerror', None) or error}.") from error


def _check_columns(csv_path: Path, columns: object) -> None:
    found = list(columns) if isinstance(columns, list | tuple) else []
    if not {"slide_id", "mpp"} <= set(found):
        listed = ", ".join(map(str, found)) or "nothing"
        raise ConfigError(
            f"Reading the mpp table {csv_path}: line 1 must name the columns slide_id,mpp; it has {listed}."
        )


def _collect(csv_path: Path, reader: csv.DictReader[str]) -> dict[str, Mpp]:
    table: dict[str, Mpp] = {}
    for row in reader:
        where = f"Reading the mpp table {csv_path}, line {reader.line_num}"
        slide_id = (row["slide_id"] or "").strip()
        if not slide_id:
            raise ConfigError(f"{where}: the slide_id is empty.")
        if slide_id in table:
            raise ConfigError(f"{where}: slide {slide_id!r} stands in the table twice. Remove one of the lines.")
        mpp = _positive(where, "mpp", row["mpp"])
        mpp_y = row.get("mpp_y")
        table[slide_id] = (mpp, _positive(where, "mpp_y", mpp_y)) if mpp_y else mpp
    return table


def _positive(where: str, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{where}: {column} must be a number above 0 (um/px, e.g. 0.25), got {text!r}.")
    return value


def _as_pair(mpp: Mpp) -> tuple[float, float]:
    return mpp if isinstance(mpp, tuple) else (float(mpp), float(mpp))
