"""Annotated polygons become regions that `tile --contours` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wsi_dino.errors import SlideError
from wsi_dino.pathology.contours import read_contours
from wsi_dino.pathology.polygon_regions import convert_regions, read_polygon_regions

_SQUARE = {"vertices": [[0, 0], [100, 0], [100, 100], [0, 100]]}
_HOLE = {"vertices": [[10.5, 10], [20, 10], [20, 20]]}


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_regions_survive_the_way_through_geojson(tmp_path: Path) -> None:
    source = _write(tmp_path / "1.json", {"positive": [_SQUARE, {"vertices": [[0, 0], [1, 1]]}], "negative": [_HOLE]})
    convert_regions(source, tmp_path / "out" / "1.geojson")
    tissue = read_contours(tmp_path / "out" / "1.geojson")
    assert [contour.tolist() for contour in tissue.contours] == [_SQUARE["vertices"]]
    assert [outline.tolist() for outline in tissue.ignored] == [_HOLE["vertices"]]


@pytest.mark.parametrize(
    "content",
    [[], {"negative": []}, {"positive": []}, {"positive": [{"points": []}]}, {"positive": [{"vertices": [[1, "x"]]}]},
     {"positive": [{"vertices": [[0, 0], [1, 0], [float("nan"), 1]]}]}],
)  # fmt: skip
def test_other_json_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(SlideError, match="Reading regions"):
        read_polygon_regions(_write(tmp_path / "1.json", content))
