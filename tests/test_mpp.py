"""The order in which a resolution is looked for, and that nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_dino.errors import ConfigError, MissingMppError
from wsi_dino.pathology.mpp import read_mpp_table, resolve_mpp
from wsi_dino.pathology.openslide_slide import mpp_of_properties
from wsi_dino.pathology.slide import Slide, open_slide
from wsi_dino.pathology.synthetic import write_pyramid


def _slide(folder: Path, mpp: float | None) -> Slide:
    write_pyramid(folder / "S1.tif", np.zeros((64, 64, 3), np.uint8), mpp=mpp, downsamples=(1,))
    return open_slide(folder / "S1.tif")


def test_the_file_goes_before_the_table_unless_the_table_is_trusted(tmp_path: Path) -> None:
    with _slide(tmp_path, 0.5) as slide:
        by_file = resolve_mpp(slide, table={"S1": 0.25}, assume_mpp=1.0)
        by_table = resolve_mpp(slide, table={"S1": (0.25, 0.26)}, trust_table=True)
    assert (by_file.mpp_xy, by_file.source) == (pytest.approx((0.5, 0.5)), "openslide.mpp-x")
    assert (by_table.mpp_xy, by_table.source) == ((0.25, 0.26), "mpp table")


def test_without_a_word_of_the_file_come_table_then_assumption(tmp_path: Path) -> None:
    with _slide(tmp_path, None) as slide:
        assert resolve_mpp(slide, table={"S1": 0.25}, assume_mpp=1.0).source == "mpp table"
        assumed = resolve_mpp(slide, table={"S2": 0.25}, trust_table=True, assume_mpp=1.0)
    assert (assumed.mpp_xy, assumed.source) == ((1.0, 1.0), "assumed")


@pytest.mark.parametrize("mpp", [None, 352.8])
def test_nothing_is_guessed(tmp_path: Path, mpp: float | None) -> None:
    with _slide(tmp_path, mpp) as slide, pytest.raises(MissingMppError) as raised:
        resolve_mpp(slide, table={"S2": 0.25})
    for word in (
        "S1",
        "tiff.XResolution" if mpp is None else "352.8",
        "--mpp-table",
        "--assume-mpp",
        "native",
        "--level",
    ):
        assert word in str(raised.value)


def test_tiff_resolution_counts_in_either_unit() -> None:
    centimetre = {"tiff.XResolution": "40000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}
    assert mpp_of_properties(centimetre) == ((0.25, 0.5), "tiff.XResolution")
    inch = {"tiff.XResolution": "50800", "tiff.YResolution": "50800", "tiff.ResolutionUnit": "inch"}
    assert mpp_of_properties(inch) == ((0.5, 0.5), "tiff.XResolution")
    assert mpp_of_properties({**inch, "tiff.ResolutionUnit": "none"})[0] is None


def test_an_implausible_property_gives_way_to_the_next_source() -> None:
    ome = '<OME xmlns="x"><Pixels PhysicalSizeX="0.25" PhysicalSizeY="0.26" PhysicalSizeXUnit="µm"/></OME>'
    properties = {"openslide.mpp-x": "352.8", "openslide.mpp-y": "352.8", "tiff.ImageDescription": ome}
    assert mpp_of_properties(properties) == ((0.25, 0.26), "OME PhysicalSizeX")


@pytest.mark.parametrize("text", ["nan", "-1", "0", "inf", "many"])
def test_nonsense_in_a_property_is_no_resolution(text: str) -> None:
    assert mpp_of_properties({"openslide.mpp-x": text, "openslide.mpp-y": text})[0] is None


def test_a_table_is_read_with_text_ids(tmp_path: Path) -> None:
    path = tmp_path / "mpp.csv"
    path.write_text("﻿slide_id,mpp,mpp_y,scanner\n007,0.25,,A\nS 2,0.5,0.51,B\n", encoding="utf-8")
    assert read_mpp_table(path) == {"007": 0.25, "S 2": (0.5, 0.51)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,mpp\nS1,0.5\n", "line 1 .*slide_id,mpp.*slide, mpp"),
        ("", "line 1"),
        ("slide_id,mpp\nS1,0.5\nS2,half\n", "line 3.*'half'"),
        ("slide_id,mpp\nS1,0.5\nS2,\n", "line 3"),
        ("slide_id,mpp\nS1,-0.5\n", "line 2.*'-0.5'"),
        ("slide_id,mpp\nS1,nan\n", "line 2"),
        ("slide_id,mpp\nS1\n", "line 2"),
        ("slide_id,mpp\n,0.5\n", "line 2.*empty"),
        ("slide_id,mpp\nS1,0.5\nS1,0.5\n", "line 3.*'S1'.*twice"),
    ],
)
def test_a_bad_table_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_mpp_table(tmp_path / "mpp.csv")


def test_a_missing_table_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mpp\.csv"):
        read_mpp_table(tmp_path / "mpp.csv")


@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("CMU-1-Small-Region.svs", 0.499),
        ("CMU-1-Small-Region.derived-pyramid.tif", 0.499),
        ("TCGA-CR-7395-01A-01-TS1.svs", None),
        ("histoprep_slide_with_ink.jpeg", None),
    ],
)
def test_the_shared_slides_say_what_is_known_of_them(shared_data: Path, name: str, mpp: float | None) -> None:
    with open_slide(shared_data / "slides" / name) as slide:
        assert slide.file_mpp == (None if mpp is None else pytest.approx((mpp, mpp)))
