"""Tissue contours as GeoJSON: opens in QuPath, and comes back after someone edited it there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import SlideError
from wsi_dino.pathology.tissue import Tissue
from wsi_dino.provenance import write_text_atomically

_TISSUE = {"name": "Tissue", "color": [0, 150, 60]}
_IGNORE = {"name": "Ignore*", "color": [180, 180, 180]}
_IGNORED_CLASS = "ignore*"
_MARK = "wsi_dino"


def write_contours(path: Path, tissue: Tissue) -> None:
    """Write `tissue` as a FeatureCollection of polygons with holes, in level-0 px, one annotation a piece.

    A checksum of the geometry stands beside the features, so that `is_edited` can tell our file from one
    that a person has changed.
    """
    polygons = [[contour, *holes] for contour, holes in zip(tissue.contours, tissue.holes, strict=True)]
    features = [_feature(rings, _TISSUE) for rings in polygons]
    features += [_feature([outline], _IGNORE) for outline in tissue.ignored]
    content = {"type": "FeatureCollection", "features": features, _MARK: {"sha256": tissue_sha256(tissue)}}
    write_text_atomically(path, json.dumps(content, separators=(",", ":")) + "\n")


def _feature(rings: list[np.ndarray], classification: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [_closed(ring) for ring in rings]},
        "properties": {"objectType": "annotation", "classification": classification},
    }


def _closed(ring: np.ndarray) -> list[list[float]]:
    corners = without_straight_points(ring)
    return np.concatenate([corners, corners[:1]]).tolist()


def without_straight_points(ring: np.ndarray) -> np.ndarray:
    """Drop the points that lie exactly on the straight line from the one before to the one after.

    Examples:
        >>> without_straight_points(np.array([[0, 0], [1, 0], [2, 0], [2, 2], [0, 2], [0, 1]])).tolist()
        [[0, 0], [2, 0], [2, 2], [0, 2]]
    """
    if len(ring) < 4 or ring.dtype.kind == "f":
        return ring
    wide = ring.astype(np.int64)
    before, after = wide - np.roll(wide, 1, axis=0), np.roll(wide, -1, axis=0) - wide
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    goes_back = (before * after).sum(axis=1) <= 0
    keep = turns | goes_back
    return ring[keep] if keep.sum() >= 3 else ring


def tissue_sha256(tissue: Tissue) -> str:
    """Return a checksum of the geometry, whatever file or number format it came in."""
    digest = hashlib.sha256()
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        _add(digest, "contour", contour)
        for hole in holes:
            _add(digest, "hole", hole)
    for outline in tissue.ignored:
        _add(digest, "ignored", outline)
    return digest.hexdigest()


def _add(digest: Any, kind: str, ring: np.ndarray) -> None:
    digest.update(kind.encode())
    digest.update(without_straight_points(ring).astype("<f8").tobytes())


def read_contours(path: Path) -> Tissue:
    """Read contours that QuPath (or `write_contours`) wrote.

    Taken are Polygon and MultiPolygon geometries in level-0 px, in a FeatureCollection, a list of
    features, a single feature, a GeometryCollection or bare; rings may be closed or not, coordinates may
    have fractions. Points and lines have no area and are passed over. Areas of QuPath's class ``Ignore*``
    are cut out of the tissue; any other class, or none, is tissue.

    Raises:
        SlideError: there is no such file, it is not GeoJSON, or a coordinate is not a finite number.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SlideError(
            f"Reading contours: there is no {path}. Export this slide from QuPath under that name, or take "
            "RUN/contours, where `wsi-dino tile` without --contours writes one for each slide."
        ) from error
    except (OSError, ValueError) as error:
        raise SlideError(f"Reading contours {path}: not GeoJSON ({error}).") from error
    try:
        return _tissue_of(list(_polygons(content, is_ignored=False)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SlideError(f"Reading contours {path}: not GeoJSON of polygons ({error}). Export it again.") from error


def _tissue_of(polygons: list[tuple[bool, list[np.ndarray]]]) -> Tissue:
    kept = [rings for is_ignored, rings in polygons if not is_ignored]
    ignored = [rings[0] for is_ignored, rings in polygons if is_ignored]
    return Tissue([rings[0] for rings in kept], [rings[1:] for rings in kept], ignored)


def _polygons(node: Any, *, is_ignored: bool) -> Iterator[tuple[bool, list[np.ndarray]]]:
    if isinstance(node, list):
        for item in node:
            yield from _polygons(item, is_ignored=is_ignored)
        return
    kind = node["type"]
    if kind == "FeatureCollection":
        yield from _polygons(node["features"], is_ignored=is_ignored)
    elif kind == "Feature":
        if node.get("geometry") is not None:
            yield from _polygons(node["geometry"], is_ignored=_is_ignored(node.get("properties") or {}))
    elif kind == "GeometryCollection":
        yield from _polygons(node["geometries"], is_ignored=is_ignored)
    elif kind in ("Polygon", "MultiPolygon"):
        parts = [node["coordinates"]] if kind == "Polygon" else node["coordinates"]
        for part in parts:
            rings = [ring for ring in map(_ring, part) if len(ring) >= 3]
            if rings:
                yield is_ignored, rings
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"unknown type {kind!r}")


def _is_ignored(properties: dict[str, Any]) -> bool:
    classification = properties.get("classification") or {}
    name = classification.get("name") if isinstance(classification, dict) else classification
    return str(name).lower() == _IGNORED_CLASS


def _ring(points: list[list[float]]) -> np.ndarray:
    ring = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is not a finite number")
    if len(ring) > 1 and np.array_equal(ring[0], ring[-1]):
        ring = ring[:-1]
    return ring.astype(np.int32) if np.all(ring == np.floor(ring)) and np.abs(ring).max(initial=0) < 2**31 else ring


def is_edited(path: Path) -> bool:
    """Tell whether `path` holds contours that a person made or changed, and must not be overwritten.

    Our own file carries a checksum of its geometry; QuPath does not keep it, and an edit breaks it.
    """
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return bool(content[_MARK]["sha256"] != tissue_sha256(read_contours(path)))
    except (OSError, ValueError, KeyError, TypeError, SlideError):
        return True
