"""What the paper prints for volumes: the columns of one dataset, with what each means and what does not fit.

Cells stay as printed, to stand beside figures made here; nothing here reproduces them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from wsi_dino.evaluation.published.anomalies import Anomaly, read_anomalies
from wsi_dino.evaluation.published.printed_table import FOLDER, SOURCE, Column, PrintedTable, read_tables


@cache
def _read(folder: Path) -> tuple[dict[int, PrintedTable], tuple[Anomaly, ...]]:
    return read_tables(folder), read_anomalies(folder / "anomalies.yaml")


def volume_tables(dataset: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the tables that hold figures of a dataset, as plain values.

    Args:
        dataset: as ``columns.csv`` spells it; "" for one that the paper does not have.
        folder: of the published tables.

    Returns:
        For each table ``table``, ``source``, ``columns`` (``metric``, ``unit``, ``heading``, ``meaning``), ``rows``
        (``label``, ``group``, ``modality`` and ``cells``: a text for each column) and ``anomalies`` (``id``,
        ``title``, ``note``).

    Raises:
        ResultError: a file is missing or broken.

    Examples:
        >>> [found] = volume_tables("MSD Task04")
        >>> {row["label"]: row["cells"] for row in found["rows"]}["DINOv3-S"]
        ['72.6']
    """
    if not dataset:
        return []
    tables, anomalies = _read(folder)
    found = []
    for table in tables.values():
        columns = [column for column in table.number_columns if column.dataset == dataset]
        if columns:
            found.append(_section(table, columns, anomalies))
    return found


def _section(table: PrintedTable, columns: list[Column], anomalies: Iterable[Anomaly]) -> dict[str, Any]:
    return {
        "table": f"Table {table.number}",
        "source": SOURCE,
        "columns": [
            {"metric": column.metric, "unit": column.unit, "heading": column.heading, "meaning": column.meaning}
            for column in columns
        ],
        "rows": [
            {
                "label": cells["method"], "group": cells["group"], "modality": cells.get("modality", ""),
                "cells": [cells[column.name] for column in columns],
            }
            for cells in table.cells.values()
        ],
        "anomalies": [
            {"id": anomaly.id, "title": anomaly.title, "note": anomaly.note}
            for anomaly in anomalies
            if _concerns(anomaly, table.number, {column.name for column in columns})
        ],
    }  # fmt: skip


def _concerns(anomaly: Anomaly, number: int, columns: set[str]) -> bool:
    """Tell whether it is about these columns, or about the whole table."""
    if str(number) not in [part.strip() for part in anomaly.table.split(",")]:
        return False
    named = {finding.column for finding in anomaly.findings}
    return not named or bool(named & columns) or "dice" in named
