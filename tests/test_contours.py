"""Contours to GeoJSON and back, in the forms that QuPath writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import SlideError
from wsi_dino.pathology.clam_grid import ClamGridPlan, plan_clam_grid
from wsi_dino.pathology.contours import is_edited, read_contours, tissue_sha256, write_contours
from wsi_dino.pathology.tissue import Overview, Tissue, find_tissue
from wsi_dino.pathology.tissue_spec import TissueSpec

_SQUARE = [[0, 0], [100, 0], [100, 80], [0, 80], [0, 0]]
_HOLE = [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]


def _blobs(seed: int, scale: float, *, every_point: bool) -> tuple[Overview, Tissue]:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((60, 70)), (0, 0), 2)
    rgb = np.where((noise > 0.49)[..., None], (210, 120, 170), (243, 243, 243)).astype(np.uint8)
    overview = Overview(rgb, (scale, scale))
    spec = TissueSpec(mthresh=3, close=2, a_t=1, a_h=0, ref_patch_size=20, no_pen=False)
    return overview, find_tissue(overview, spec, every_point=every_point)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 60), st.booleans())
def test_written_and_read_back_gives_the_same_mask_and_the_same_clam_tiles(
    tmp_path_factory: pytest.TempPathFactory, seed: int, scale: float, every_point: bool
) -> None:
    overview, tissue = _blobs(seed, scale, every_point=every_point)
    path = tmp_path_factory.mktemp("contours") / "s.geojson"
    write_contours(path, tissue)
    again = read_contours(path)
    assert tissue_sha256(again) == tissue_sha256(tissue)
    assert np.array_equal(again.mask(overview), tissue.mask(overview))
    for rule in ("four_pt", "four_pt_hard", "center", "basic"):
        plan = ClamGridPlan(7, 5, (2.0, 2.0), rule, True, (int(70 * scale), int(60 * scale)))
        first = plan_clam_grid(tissue.contours, tissue.holes, plan)
        assert np.array_equal(plan_clam_grid(again.contours, again.holes, plan), first)


def test_qupath_finds_annotations_with_closed_rings_and_valid_polygons(tmp_path: Path) -> None:
    from shapely.geometry import shape

    _, tissue = _blobs(3, 16.0, every_point=False)
    write_contours(tmp_path / "s.geojson", tissue)
    content = json.loads((tmp_path / "s.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == len(tissue.contours) > 0
    for feature, contour in zip(content["features"], tissue.contours, strict=True):
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] == "Tissue"
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in feature["geometry"]["coordinates"])
        assert shape(feature["geometry"]).exterior.bounds == (*contour.min(axis=0), *contour.max(axis=0))


def _polygon(rings: list, name: str | None = None) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name:
        properties["classification"] = {"name": name, "colorRGB": -377282}
    return {
        "type": "Feature",
        "id": "x",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": properties,
    }


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [_polygon([_SQUARE, _HOLE])]},
        [_polygon([_SQUARE, _HOLE], "Tumor")],
        _polygon([_SQUARE, _HOLE]),
        {"type": "Polygon", "coordinates": [_SQUARE, _HOLE]},
        {"type": "MultiPolygon", "coordinates": [[_SQUARE, _HOLE]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [_SQUARE, _HOLE]}]},
        [_polygon([_SQUARE[:-1], _HOLE[:-1]]), {"type": "Feature", "geometry": None, "properties": None}],
        [
            _polygon([[[float(x), float(y), 0.0] for x, y in ring] for ring in (_SQUARE, _HOLE)]),
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}},
        ],
    ],
)
def test_every_form_gives_the_same_tissue(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "s.geojson"
    path.write_text(json.dumps(content))
    tissue = read_contours(path)
    assert [c.tolist() for c in tissue.contours] == [_SQUARE[:-1]]
    assert [[h.tolist() for h in holes] for holes in tissue.holes] == [[_HOLE[:-1]]]


def test_ignored_areas_are_cut_out_and_survive_writing(tmp_path: Path) -> None:
    path = tmp_path / "s.geojson"
    left = [[0, 0], [40.5, 0], [40.5, 80], [0, 80], [0, 0]]
    path.write_text(json.dumps([_polygon([_SQUARE]), _polygon([left], "Ignore*")]))
    tissue = read_contours(path)
    overview = Overview(np.zeros((80, 100, 3), np.uint8), (1.0, 1.0))
    mask = tissue.mask(overview)
    assert not mask[10:70, :38].any()
    assert mask[10:70, 45:95].all()
    write_contours(tmp_path / "t.geojson", tissue)
    assert tissue_sha256(read_contours(tmp_path / "t.geojson")) == tissue_sha256(tissue)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[1, 2]",
        '{"type": "Circle"}',
        '{"features": []}',
        '{"type": "Polygon", "coordinates": [[["a", 1]]]}',
        '{"type": "Polygon", "coordinates": [[[1e999, 1], [2, 2], [3, 1]]]}',
    ],
)
def test_broken_files_are_slide_errors_that_name_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.geojson"
    path.write_text(text)
    with pytest.raises(SlideError, match=r"s\.geojson"):
        read_contours(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="Export this slide from QuPath"):
        read_contours(tmp_path / "s.geojson")


def test_an_edit_is_recognised_and_our_own_file_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "s.geojson"
    assert not is_edited(path)
    _, tissue = _blobs(1, 8.0, every_point=True)
    write_contours(path, tissue)
    assert not is_edited(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"type": "FeatureCollection", "features": content["features"]}))  # as QuPath saves it
    assert is_edited(path)
    content["features"][0]["geometry"]["coordinates"][0][1][0] += 3
    path.write_text(json.dumps(content))
    assert is_edited(path)
    path.write_text("half a fi")
    assert is_edited(path)
