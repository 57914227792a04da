"""The table of all slides and encoders of a run: `embed.csv`."""

from __future__ import annotations

from typing import Any

from wsi_dino.run_folder import RunFolder

COLUMNS = ("encoder", "slide_id", "status", "reason", "tiles", "seconds", "tiles_per_s", "backend")
_PREFIX = "embed-"


def embed_stage(encoder: str) -> str:
    """Return the stage name of the rows of one encoder."""
    return f"{_PREFIX}{encoder}"


def all_rows(run: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of every encoder of `run`, by encoder and slide."""
    stages = sorted(folder.name for folder in run.state.glob(f"{_PREFIX}*") if folder.is_dir())
    rows = [row for stage in stages for row in run.rows(stage)]
    return sorted(rows, key=lambda row: (str(row.get("encoder")), str(row.get("slide_id"))))


def write_embed_table(run: RunFolder) -> None:
    """Write ``RUN/embed.csv``, one row an encoder and slide."""
    run.write_table(run.path / "embed.csv", all_rows(run), COLUMNS)
