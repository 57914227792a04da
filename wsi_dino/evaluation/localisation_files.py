"""What the comparison with annotated regions leaves on disk: JSON, a table of detections, the FROC curve."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.evaluation.pictures import INK, SERIES, Picture
from wsi_dino.provenance import write_json_atomically, write_text_atomically

_COLUMNS = ("slide_id", "x", "y", "score", "hit")


def write_localisation(folder: Path, content: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write localisation.json, detections.csv and, where there is a score, froc.svg and froc.png.

    Args:
        folder: where to.
        content: has ``froc`` and ``pointing_game``.
        detections: ``slide_id``, ``x`` and ``y`` (centre, level-0 px), ``score``, ``hit`` (number of the lesion,
            0 for none, -1 for isolated tumour cells).

    Returns:
        The files.
    """
    paths = [folder / "localisation.json", folder / "detections.csv"]
    write_json_atomically(paths[0], content)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(detections)
    write_text_atomically(paths[1], buffer.getvalue())
    if content["froc"]["score"] is not None:
        return paths + froc_picture(content["froc"]).save(folder)
    for path in (folder / "froc.svg", folder / "froc.png"):  # of an earlier request
        path.unlink(missing_ok=True)
    return paths


def froc_picture(froc: Mapping[str, Any]) -> Picture:
    """Return sensitivity over false positives a slide on a scale of doublings, with the six points of the score."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        rate, sensitivity = (np.array(froc["curve"][name]) for name in ("false_positives", "sensitivity"))
        rates = froc["false_positives"]
        shown = np.geomspace(rates[0] / 2, rates[-1], 400)
        axis.plot(shown, np.interp(shown, rate, sensitivity), color=SERIES[0], linewidth=1.8)
        axis.plot(rates, froc["sensitivity"], "o", color=SERIES[1], label=f"their mean, the score: {froc['score']:.3f}")
        axis.set_xscale("log", base=2)
        axis.set_xticks(rates, ["1/4", "1/2", "1", "2", "4", "8"])
        axis.set_xticks([], minor=True)
        whose = "normal slide" if froc["counted"] == "normal" else "slide"
        axis.set(xlabel=f"false positives a {whose}", ylabel=f"share of {froc['n_lesions']} lesions found")
        axis.set_ylim(-0.02, 1.02)
        axis.axhline(1, color=INK, linewidth=0.6, linestyle=(0, (2, 3)))
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1))

    return Picture("froc", "Sensitivity for lesions over false positives a slide", (4.8, 3.6), draw)
