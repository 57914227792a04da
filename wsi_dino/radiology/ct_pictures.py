"""What the encoder really sees of volumes, and what its patches tell: pictures for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wsi_dino.errors import EncoderError, VolumeError
from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.patch_maps import enlarged, tile_pictures
from wsi_dino.evaluation.radiology_report import PagePicture
from wsi_dino.radiology.ct_slices import SliceSpec, slice_images
from wsi_dino.radiology.ct_task import CtTask
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.radiology.map_pictures import Looked, colour_picture, evenly, similarity_pictures
from wsi_dino.volumes.reading import open_volume

_VOLUMES, _SHEET_PX = 8, 150
_PLACES = (0.2, 0.4, 0.6, 0.8)  # of the way from the lowest slice to the highest
_MAPPED = 6


def ct_pictures(
    task: CtTask, encoder: Any, metrics: Mapping[str, Any], folds: Sequence[FoldScores]
) -> list[PagePicture]:
    """Return a contact sheet of some volumes, patches of middle slices as colours, and where they resemble a label.

    Volumes that can no longer be read are passed over.

    Args:
        task: its volumes and what an image shows.
        encoder: loaded; one without feature maps gives the sheet alone.
        metrics: the content of metrics.json.
        folds: scores, of which the first fold's volumes are shown.
    """
    rows, spec = task.used, task.features.spec
    picked = [rows[place] for place in evenly(len(rows), _VOLUMES)]
    shown = [(row.volume_id, views) for row in picked if (views := _views(row, spec, encoder)) is not None]
    if not shown:
        return []

    def maps(pixels: np.ndarray) -> np.ndarray:
        """Of the last layer that the record names."""
        return np.asarray(encoder.feature_maps(pixels)[-1].numpy())

    which = f", of each the one of {len(_PLACES)} slices where patches resemble it most"
    looked = Looked(
        lambda row: _views(rows[row], spec, encoder), maps, task.table.label_names, task.targets, "volumes", which
    )
    pictures = [_contact_sheet(shown, spec, encoder)]
    try:
        few = np.stack([views[len(views) // 2] for _, views in shown[:_MAPPED]])
        pictures.append(colour_picture(few, maps(few), "slice"))
        pictures += similarity_pictures(looked, metrics, folds[0])
    except EncoderError as error:  # networks of which no feature map is known
        pictures[0] = replace(pictures[0], caption=f"{pictures[0].caption} No maps: {error}")
    return pictures


def _views(row: VolumeRow, spec: SliceSpec, encoder: Any) -> np.ndarray | None:
    """Return chosen slices of one volume, uint8 ``(n, side, side, 3)``, or None when it cannot be read."""
    try:
        volume = open_volume(row.path, rescale=row.rescale, spacing_mm=row.spacing_mm, hu=spec.hu)
    except (VolumeError, OSError):
        return None
    wanted = sorted({int(place * len(volume)) for place in _PLACES})
    few = replace(volume, voxels=volume.voxels[wanted])
    return next(slice_images(few, spec, encoder.input_px, encoder.spec.interpolation, len(wanted)))


def _contact_sheet(shown: Sequence[tuple[str, np.ndarray]], spec: SliceSpec, encoder: Any) -> PagePicture:
    blank = np.full((_SHEET_PX, _SHEET_PX, 3), 255, np.uint8)
    tiles: list[np.ndarray] = []
    for _, views in shown:
        own = [enlarged(view, _SHEET_PX, smooth=True) for view in views]
        tiles += own + [blank] * (len(_PLACES) - len(own))
    columns = len(_PLACES) * (2 if len(shown) > 1 else 1)
    caption = (
        f"Four slices of each volume from low to high, as the encoder gets them ({spec.shown}; {encoder.input_px} px): "
        f"anterior on top, the patient's right on the left. Row by row: {', '.join(name for name, _ in shown)}."
    )
    return PagePicture("What the encoder is shown", tile_pictures(tiles, columns), caption)
