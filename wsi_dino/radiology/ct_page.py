"""What the report of a CT run tells beside its figures, and what the encoder really saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi_dino.errors import VolumeError
from wsi_dino.evaluation.radiology_report import PagePicture, RadiologyPage, render_radiology
from wsi_dino.radiology.ct_folds import ProbedFolds
from wsi_dino.radiology.ct_slices import SliceSpec, slice_images
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.volumes.reading import open_volume

_VOLUMES_SHOWN = 8
_PLACES = (0.2, 0.4, 0.6, 0.8)  # of the way from the lowest slice to the highest
_TILE_PX, _GAP_PX = 160, 4


def render_ct_page(
    metrics: Mapping[str, Any], probed: ProbedFolds, pictures: Sequence[PagePicture], command: str
) -> str:
    """Return report.html of the content of metrics.json."""
    task = f" ({metrics['task']})" if metrics["task"] else ""
    title = (
        f"{metrics['dataset']}{task} from {metrics['encoder']} at {metrics['input_px']} px, "
        f"{metrics['protocol']['pool']} of slices, {metrics['protocol']['model']}"
    )
    return render_radiology(RadiologyPage(metrics, probed.folds, title, "volumes", _facts(metrics), pictures, command))


def _facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    protocol, volumes, made = metrics["protocol"], metrics["images"], metrics["provenance"]
    counts = [", ".join(f"{name} {fold[name]['volumes']} of {fold[name]['patients']} patients" for name in fold)
              for fold in protocol["folds"]]  # fmt: skip
    states = ", ".join(f"{n} {state}" for state, n in volumes["hu"].items())
    return {
        "volumes": f"{volumes['used']} of {volumes['in_table']} in the table, {volumes['patients']} patients, "
        f"{volumes['slices']} slices; {volumes['failed']} could not be read; {volumes['not_in_table']} files are not "
        "in the table",
        "Hounsfield units": f"rescale {states} (volumes.csv tells why of each)",
        "split": f"{protocol['split']}; {'; '.join(counts)}; {protocol['validation']}",
        "shown to the encoder": f"{protocol['view_in_words']}, at {metrics['input_px']} px; {protocol['slices']}",
        "encoder": f"{metrics['encoder']}, {made['embed_dim']} features, token: {protocol['token']}, "
        f"weights {str(made['weights_sha256'])[:16]} ({made['weights_source']}), {made['precision']}",
        "vector of a volume": f"{protocol['pool']} over its slices",
        protocol["model"]: "; ".join(f"{key} {value}" for key, value in protocol["probe"].items()),
        "chosen in each fold": "; ".join(_chosen(facts) for facts in protocol["chosen"]),
        "the paper gives": ", ".join(protocol["given_by_the_paper"]),
        "the paper does not give": ", ".join(protocol["not_given_by_the_paper"]),
        "licence of the encoder": str(made["record"]["licence"]),
    }


def _chosen(facts: Mapping[str, Any]) -> str:
    if facts["model"] == "k-NN":
        return f"k {facts['k']}, {facts['metric']}, {facts['weighting']}, among {facts['bank']}"
    if "kept_epoch" in facts:
        return f"epoch {facts['kept_epoch']}"
    return f"C {facts['check_c']:g} of logistic regression"


def contact_sheet(rows: Sequence[VolumeRow], spec: SliceSpec, side_px: int, interpolation: str) -> PagePicture | None:
    """Draw what the encoder is shown: four slices of some volumes, from low to high; None where none can be read."""
    picked = [rows[i * len(rows) // _VOLUMES_SHOWN] for i in range(min(_VOLUMES_SHOWN, len(rows)))]
    lines, names = [], []
    for row in picked:
        shown = _shown(row, spec, side_px, interpolation)
        if shown is not None:
            lines.append(_line(shown))
            names.append(row.volume_id)
    if not lines:
        return None
    gap = np.full((_GAP_PX, lines[0].shape[1], 3), 255, np.uint8)
    sheet = np.concatenate([part for line in lines for part in (line, gap)][:-1])
    caption = (
        f"Four slices of each volume, from low to high, exactly as the encoder gets them ({spec.shown}; {side_px} px): "
        f"anterior on top, the patient's right on the left. From top to bottom: {', '.join(names)}."
    )
    return PagePicture("What the encoder sees", sheet, caption)


def _shown(row: VolumeRow, spec: SliceSpec, side_px: int, interpolation: str) -> list[np.ndarray] | None:
    try:
        volume = open_volume(row.path, rescale=row.rescale, spacing_mm=row.spacing_mm, hu=spec.hu)
    except (VolumeError, OSError):
        return None
    wanted = sorted({int(place * len(volume)) for place in _PLACES})
    found = []
    for number, images in enumerate(slice_images(volume, spec, side_px, interpolation, 1)):
        if number in wanted:
            found.append(images[0])
        if number >= wanted[-1]:
            break
    return found


def _line(images: Sequence[np.ndarray]) -> np.ndarray:
    from PIL import Image

    parts: list[np.ndarray] = []
    for index in range(len(_PLACES)):
        tile = np.full((_TILE_PX, _TILE_PX, 3), 255, np.uint8)
        if index < len(images):
            tile = np.asarray(Image.fromarray(images[index]).resize((_TILE_PX, _TILE_PX), Image.Resampling.BILINEAR))
        parts += [tile, np.full((_TILE_PX, _GAP_PX, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)
