"""What the encoder really sees of volumes, and what its patches tell: pictures for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wsi_dino.errors import EncoderError, VolumeError
from wsi_dino.evaluation.patch_maps import enlarged, principal_colours, tile_pictures
from wsi_dino.evaluation.radiology_report import PagePicture
from wsi_dino.radiology.ct_slices import SliceSpec, slice_images
from wsi_dino.radiology.datasets.volume_row import VolumeRow
from wsi_dino.volumes.reading import open_volume

_VOLUMES, _SHEET_PX = 8, 150
_PLACES = (0.2, 0.4, 0.6, 0.8)  # of the way from the lowest slice to the highest
_MAPPED, _MAPPED_PX = 6, 176


def ct_pictures(rows: Sequence[VolumeRow], spec: SliceSpec, encoder: Any) -> list[PagePicture]:
    """Return a contact sheet of some volumes and the patches of their middle slices as colours.

    Args:
        rows: volumes that could be read; those that can no longer be are passed over.
        spec: what an image shows.
        encoder: loaded; one without feature maps gives the sheet alone.
    """
    picked = [rows[i * len(rows) // _VOLUMES] for i in range(min(_VOLUMES, len(rows)))]
    shown = [(row.volume_id, views) for row in picked if (views := _views(row, spec, encoder)) is not None]
    if not shown:
        return []
    pictures = [_contact_sheet(shown, spec, encoder)]
    try:
        pictures.append(_colours([views[len(views) // 2] for _, views in shown[:_MAPPED]], encoder))
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


def _colours(views: Sequence[np.ndarray], encoder: Any) -> PagePicture:
    stacked = np.stack(views)
    maps = np.asarray(encoder.feature_maps(stacked)[-1].numpy())
    tiles = [enlarged(view, _MAPPED_PX, smooth=True) for view in stacked]
    tiles += [enlarged(picture, _MAPPED_PX, smooth=False) for picture in principal_colours(maps)]
    return PagePicture(
        "Patches as colours",
        tile_pictures(tiles, len(stacked)),
        "Below a slice of each volume, the first three principal components of its patch features as red, green and "
        "blue, the same for all: patches of one colour are alike to the encoder.",
    )
