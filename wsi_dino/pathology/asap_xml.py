"""Annotated polygons in ASAP's XML, the form of Camelyon16 and Camelyon17."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from wsi_dino.errors import SlideError
from wsi_dino.pathology.tissue import Tissue

# groups that the publishers' own conversion to masks does not paint as tumour
_CUT_OUT = {"_2", "exclusion", "normal"}
_TUMOUR = {"_0", "_1", "tumor", "metastases"}
_PASSED_OVER = {"none", ""}
_LEAST_POINTS = 3
_LARGEST_BYTES = 256 * 2**20


def read_asap_xml(path: Path) -> Tissue:
    """Read tumour polygons, and those to be cut out of them, in level-0 px.

    Groups ``_0``, ``_1``, ``Tumor`` and ``metastases`` are tumour; ``_2``, ``Exclusion`` and ``normal``
    are cut out of it. What is in no group, points, lines and polygons of fewer than three points are passed over.

    Raises:
        SlideError: no such file, not of that form, of an unknown group, or without a tumour polygon.
    """
    kept: list[np.ndarray] = []
    cut_out: list[np.ndarray] = []
    doing = f"Reading annotations {path}"
    try:
        for annotation in _root(path).iter("Annotation"):
            group = (annotation.get("PartOfGroup") or "").lower()
            if group not in _TUMOUR | _CUT_OUT | _PASSED_OVER:
                known = ", ".join(sorted(_TUMOUR | _CUT_OUT))
                raise SlideError(f"{doing}: unknown group {annotation.get('PartOfGroup')!r}. Known: {known}.")
            ring = _ring(annotation)
            if len(ring) >= _LEAST_POINTS and group not in _PASSED_OVER:
                (cut_out if group in _CUT_OUT else kept).append(ring)
    except (OSError, ValueError, TypeError, ElementTree.ParseError) as error:
        raise SlideError(f"{doing}: not ASAP's XML of polygons ({type(error).__name__}: {error}).") from error
    if not kept:
        raise SlideError(f"{doing}: no tumour polygon of three points or more.")
    return Tissue(kept, [[] for _ in kept], cut_out)


def _root(path: Path) -> ElementTree.Element:
    if path.stat().st_size > _LARGEST_BYTES:
        raise ValueError(f"larger than {_LARGEST_BYTES >> 20} MiB")
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # entities can grow without bound
        raise ValueError("it declares entities")
    return ElementTree.fromstring(content)


def _ring(annotation: ElementTree.Element) -> np.ndarray:
    points = [
        (int(float(item.get("Order", number))), float(item.attrib["X"]), float(item.attrib["Y"]))
        for number, item in enumerate(annotation.iter("Coordinate"))
        if "X" in item.attrib and "Y" in item.attrib
    ]
    ring = np.array([point[1:] for point in sorted(points)], np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is not a finite number")
    return ring
