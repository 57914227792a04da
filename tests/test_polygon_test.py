"""The lattice test against OpenCV's point by point test."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.pathology.polygon_test import side_of_polygon


def _one_by_one(polygon: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    contour = polygon.reshape(-1, 1, 2).astype(np.int32)
    return np.array([[cv2.pointPolygonTest(contour, (float(a), float(b)), False) for b in y] for a in x])


points = st.lists(st.tuples(st.integers(-6, 12), st.integers(-6, 12)), min_size=1, max_size=14)


@settings(max_examples=400, deadline=None)
@given(points, st.booleans())
def test_equals_opencv_on_any_polygon_corner_edge_and_half_pixel(corners: list[tuple[int, int]], half: bool) -> None:
    polygon = np.array(corners)
    step = 0.5 if half else 1.0
    x, y = np.arange(-8, 14, step), np.arange(-7, 15, step)
    assert np.array_equal(side_of_polygon(polygon, x, y), _one_by_one(polygon, x, y))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1.0, 70.0), st.integers(1, 97))
def test_equals_opencv_on_scaled_blobs_with_large_coordinates(seed: int, scale: float, step: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (cv2.GaussianBlur(rng.random((48, 48)), (0, 0), 2.5) > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        polygon = np.array(contour * scale, dtype="int32")[:, 0] + 100_000
        low, high = polygon.min(axis=0) - 2, polygon.max(axis=0) + 3
        x, y = np.arange(low[0], high[0], step), np.arange(low[1], high[1], max(step, 5))
        assert np.array_equal(side_of_polygon(polygon, x, y), _one_by_one(polygon, x, y))
