"""Encoders by sizes of the image: one table and one picture of how the AUC moves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.evaluation.pictures import INK, MARKERS, SERIES, Picture, plain_text
from wsi_dino.provenance import write_json_atomically, write_text_atomically

COLUMNS = (
    "encoder", "input_px", "labels", "auc_macro", "auc_macro_low", "auc_macro_high",
    "auc_macro_frequent", "auc_macro_frequent_low", "auc_macro_frequent_high",
    "check_auc_macro_frequent", "images", "images_failed",
)  # fmt: skip
_AXIS = "auc_macro_frequent"


def study_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a result (contents of metrics.json), `COLUMNS` each, by encoder in the order given, then size."""
    order = list(dict.fromkeys(result["encoder"] for result in results))
    ordered = sorted(results, key=lambda result: (order.index(result["encoder"]), result["input_px"]))
    return [_row(result) for result in ordered]


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    summary = result["summary"]
    row: dict[str, Any] = {"encoder": result["encoder"], "input_px": result["input_px"]}
    row["labels"] = summary[_AXIS].get("n_labels") or len(result["labels"])
    for name in ("auc_macro", "auc_macro_frequent"):
        row |= {
            name: summary[name]["value"],
            f"{name}_low": summary[name]["low"],
            f"{name}_high": summary[name]["high"],
        }
    check = result.get("check")  # k-NN has none
    row["check_auc_macro_frequent"] = check["summary"][_AXIS]["value"] if check else None
    return row | {"images": result["images"]["used"], "images_failed": result["images"]["failed"]}


def size_picture(rows: Sequence[Mapping[str, Any]], name: str = "auc-by-size") -> Picture:
    """Return the mean AUC over the size of the image, a line an encoder, with 95 % intervals."""
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    sizes = sorted({row["input_px"] for row in rows})
    which = _AXIS if any(row[_AXIS] is not None for row in rows) else "auc_macro"

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for number, encoder in enumerate(encoders):
            mine = [row for row in rows if row["encoder"] == encoder and row[which] is not None]
            _line(axis, mine, which, number, (number - (len(encoders) - 1) / 2) * 0.012)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set(
            xlabel="side of the image shown to the encoder, px", ylabel=f"mean AUC over {rows[0]['labels']} labels"
        )
        axis.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        low, high = axis.get_ylim()
        if low < 0.5 < high:
            axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if len(encoders) > 3 else len(encoders))

    return Picture(name, "Mean AUC over image size for each encoder", (7.0, 4.2), draw)


def _line(axis: Any, rows: Sequence[Mapping[str, Any]], which: str, number: int, shift: float) -> None:
    if not rows:
        return
    x = np.array([row["input_px"] for row in rows]) * (1 + shift)
    value = np.array([row[which] for row in rows])
    bounds = [np.array([np.nan if row[f"{which}_{end}"] is None else row[f"{which}_{end}"] for row in rows])
              for end in ("low", "high")]  # fmt: skip
    colour = SERIES[number % len(SERIES)]
    axis.vlines(x, *bounds, color=colour, linewidth=1.2)
    label = plain_text(rows[0]["encoder"])
    axis.plot(x, value, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=5, label=label)


def write_study(folder: Path, results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write study.csv, study.json, auc-by-size.svg and .png; the same results give the same bytes.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    rows = study_rows(results)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    paths = [folder / "study.csv", folder / "study.json"]
    write_text_atomically(paths[0], buffer.getvalue())
    write_json_atomically(paths[1], {"table": rows, "figure": _AXIS, "interval": results[0]["protocol"]["intervals"]})
    return paths + size_picture(rows).save(folder)
