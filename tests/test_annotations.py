"""Annotations of Camelyon16's form: read, cut out, painted in the right place, and refused when they are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cohort_folders import make_camelyon16
from command_line import run_command

from wsi_dino.errors import ConfigError, SlideError
from wsi_dino.pathology.annotations import annotated_mask, find_annotations, read_annotations
from wsi_dino.pathology.contours import read_contours
from wsi_dino.pathology.lesion_map import lesion_map

Polygon = tuple[str, list[tuple[float, float]]]
SQUARE: Polygon = ("_0", [(100.0, 200.0), (300.0, 200.0), (300.0, 400.0), (100.0, 400.0)])
HOLE: Polygon = ("_2", [(150.0, 250.0), (200.0, 250.0), (200.0, 300.0), (150.0, 300.0)])


def asap_xml(polygons: list[Polygon], *, shuffled: bool = False) -> str:
    """Return the XML that ASAP writes."""
    annotations = ""
    for number, (group, points) in enumerate(polygons):
        coordinates = [f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points)]
        inner = "".join(coordinates[::-1] if shuffled else coordinates)
        annotations += (
            f'<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{inner}</Coordinates></Annotation>"
        )
    groups = '<AnnotationGroups><Group Name="_0" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>'
    return (
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{annotations}</Annotations>{groups}</AnnotationGroups>'
        "</ASAP_Annotations>\n"
    )


def _area(path: Path) -> float:
    mask = annotated_mask(read_annotations(path), (500, 600), (0.25, 0.25), 0.5)
    assert mask.shape == (300, 250)
    return float(mask.sum()) * 4


@pytest.mark.parametrize("shuffled", [False, True])
def test_polygons_are_painted_where_they_lie(tmp_path: Path, shuffled: bool) -> None:
    (tmp_path / "s.xml").write_text(asap_xml([SQUARE, HOLE], shuffled=shuffled))
    mask = annotated_mask(read_annotations(tmp_path / "s.xml"), (500, 600), (0.25, 0.25), 0.5)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (50, 150, 100, 200)
    assert not mask[130:145, 80:95].any()  # cut out
    assert mask.sum() * 4 == pytest.approx(200**2 - 50**2, rel=0.03)


@pytest.mark.parametrize(
    ("tumour", "cut_out"), [("_1", "_2"), ("Tumor", "Exclusion"), ("metastases", "normal"), ("_0", "_2")]
)
def test_groups_of_both_challenges(tmp_path: Path, tumour: str, cut_out: str) -> None:
    (tmp_path / "s.xml").write_text(asap_xml([(tumour, SQUARE[1]), (cut_out, HOLE[1]), ("None", [(0.0, 0.0)] * 4)]))
    assert _area(tmp_path / "s.xml") == pytest.approx(200**2 - 50**2, rel=0.03)


def test_regions_that_overlap_are_painted_once(tmp_path: Path) -> None:
    second: Polygon = ("_1", [(200.0, 200.0), (400.0, 200.0), (400.0, 400.0), (200.0, 400.0)])
    (tmp_path / "s.xml").write_text(asap_xml([SQUARE, second, ("_0", [(1.0, 1.0), (5.0, 5.0)])]))
    assert _area(tmp_path / "s.xml") == pytest.approx(300 * 200, rel=0.03)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (asap_xml([("_7", SQUARE[1])]), "unknown group '_7'"),
        (asap_xml([HOLE]), "no tumour polygon"),
        (asap_xml([]), "no tumour polygon"),
        (asap_xml([SQUARE])[:300], "not ASAP's XML"),
        (asap_xml([("_0", [(0.0, 0.0), (float("nan"), 1.0), (1.0, 1.0)])]), "not a finite number"),
        (asap_xml([SQUARE]).replace('X="100.0"', 'X="left"'), "not ASAP's XML"),
        ("", "not ASAP's XML"),
        ('<!DOCTYPE a [<!ENTITY b "ccc">]><a>&b;</a>', "declares entities"),
        ("{}", "not ASAP's XML"),
    ],
)
def test_what_is_no_annotation_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "s.xml").write_text(content)
    with pytest.raises(SlideError, match=complaint):
        read_annotations(tmp_path / "s.xml")


def test_annotation_of_another_slide_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "s.xml").write_text(asap_xml([("_0", [(x + 9000, y) for x, y in SQUARE[1]])]))
    with pytest.raises(SlideError, match="none of its regions lies on the slide"):
        lesion_map(tmp_path / "s.xml", (500, 600), (0.25, 0.25), 0.5)


def test_annotations_are_found_by_slide(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.xml").write_text("")
    (tmp_path / "two.geojson").write_text("")
    assert sorted(find_annotations(tmp_path)) == ["one", "two"]
    (tmp_path / "one.geojson").write_text("")
    with pytest.raises(ConfigError, match="slide one has two"):
        find_annotations(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        find_annotations(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no SLIDE\.xml"):
        find_annotations(tmp_path / "empty")


def test_camelyon16_gives_its_annotations_as_geojson(tmp_path: Path) -> None:
    make_camelyon16(tmp_path / "c16")
    for place, name in (("training", "tumor_005"), ("testing", "test_001")):
        folder = tmp_path / "c16" / place / "lesion_annotations"
        folder.mkdir()
        (folder / f"{name}.xml").write_text(asap_xml([SQUARE, HOLE]))
    ran = run_command(tmp_path, "cohort", "camelyon16", "c16", "--contours-to", "out", "--json")
    assert ran.code == 0, ran.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test_001.geojson", "tumor_005.geojson"]
    tissue = read_contours(tmp_path / "out" / "test_001.geojson")
    assert tissue.contours[0].tolist() == [list(point) for point in SQUARE[1]]
    assert len(tissue.ignored) == 1
    assert json.loads((tmp_path / "out" / "test_001.geojson").read_text())["type"] == "FeatureCollection"
    same = [annotated_mask(read_annotations(path), (500, 600), (0.25, 0.25), 0.5) for path in (
        tmp_path / "out" / "test_001.geojson", tmp_path / "c16/testing/lesion_annotations/test_001.xml",
    )]  # fmt: skip
    assert np.mean(same[0] != same[1]) < 0.01
