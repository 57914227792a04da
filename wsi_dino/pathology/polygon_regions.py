"""Annotated polygons as they come with cohorts, in ASAP's XML or in JSON, as regions for `tile --contours`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import SlideError
from wsi_dino.pathology.asap_xml import read_asap_xml
from wsi_dino.pathology.contours import write_contours
from wsi_dino.pathology.tissue import Tissue

_LEAST_POINTS = 3


def read_polygon_regions(path: Path) -> Tissue:
    """Read ``{"positive": [{"vertices": [[x, y], ...]}, ...], "negative": [...]}``, or ASAP's XML, in level-0 px.

    Positive polygons are the regions; negative ones are cut out of them. A polygon of fewer than three
    points has no area and is passed over.

    Raises:
        SlideError: no such file, not of that form, or without a positive polygon.
    """
    if path.suffix.lower() == ".xml":
        return read_asap_xml(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        kept = _outlines(content["positive"])
        ignored = _outlines(content.get("negative") or [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = '{"positive": [{"vertices": [[x, y], ...]}]}'
        raise SlideError(f"Reading regions {path}: expected {wanted} ({type(error).__name__}: {error}).") from error
    if not kept:
        raise SlideError(f"Reading regions {path}: no positive polygon of three points or more.")
    return Tissue(kept, [[] for _ in kept], ignored)


def _outlines(polygons: list[dict[str, Any]]) -> list[np.ndarray]:
    rings = [np.asarray(polygon["vertices"], np.float64).reshape(-1, 2) for polygon in polygons]
    for ring in rings:
        if not np.isfinite(ring).all():
            raise ValueError("a coordinate is not a finite number")
    return [_whole(ring) for ring in rings if len(ring) >= _LEAST_POINTS]


def _whole(ring: np.ndarray) -> np.ndarray:
    return ring.astype(np.int32) if np.all(ring == np.floor(ring)) and np.abs(ring).max() < 2**31 else ring


def convert_regions(source: Path, target: Path) -> None:
    """Write the regions of one slide as the GeoJSON that ``tile --contours`` and QuPath read.

    Raises:
        SlideError: as `read_polygon_regions`.
        StorageError: the disk is full or the folder cannot be written.
    """
    write_contours(target, read_polygon_regions(source))
