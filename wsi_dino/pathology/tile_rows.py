"""The rows that `tile` has left of each slide, read when they are asked for."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from wsi_dino import share
from wsi_dino.run_folder import RunFolder, safe_name

_STAGE = "tile"


class TileRows(Mapping[str, Mapping[str, Any]]):
    """Rows by slide_id, sorted.

    Attributes:
        tiles: of each slide, for the order of the work.
    """

    def __init__(
        self, run: RunFolder, rows: Mapping[str, Mapping[str, Any] | None], tiles: Mapping[str, float]
    ) -> None:
        self._run, self._rows = run, dict(sorted(rows.items()))
        self.tiles = {slide_id: tiles[slide_id] for slide_id in self._rows}

    def __getitem__(self, slide_id: str) -> Mapping[str, Any]:
        row = self._rows[slide_id]
        if row is None:
            row = self._rows[slide_id] = self._run.read_row(_STAGE, slide_id) or {"slide_id": slide_id}
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def tile_rows(run: RunFolder, only: Collection[str] | None = None) -> TileRows:
    """Return the rows of a tiled run.

    A process with a part of the slides does not read the rows of all: which there are, and how many tiles they have,
    it takes from tiles.csv, where that table names the same slides.

    Args:
        run: tiled.
        only: slides wanted; None for all.
    """
    listed = _listed(run) if share.current() is not None else None
    if listed is not None:
        wanted = {slide_id: n for slide_id, n in listed.items() if only is None or slide_id in only}
        return TileRows(run, dict.fromkeys(wanted), wanted)
    rows = {str(row["slide_id"]): row for row in run.rows(_STAGE)}
    rows = {slide_id: row for slide_id, row in rows.items() if only is None or slide_id in only}
    return TileRows(run, rows, {slide_id: float(row.get("tiles") or 0) for slide_id, row in rows.items()})


def _listed(run: RunFolder) -> dict[str, float] | None:
    try:
        with (run.path / "tiles.csv").open(newline="", encoding="utf-8") as stream:
            tiles = {row["slide_id"]: float(row["tiles"] or 0) for row in csv.DictReader(stream)}
    except (OSError, KeyError, ValueError):
        return None
    return tiles if {f"{safe_name(slide_id)}.json" for slide_id in tiles} == run.row_names(_STAGE) else None
