"""Pen and ink are found, and nuclei, blood and folds of real tissue are not taken for them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from wsi_dino.pathology.ink import find_ink
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.synthetic import draw_tissue
from wsi_dino.pathology.tissue import Overview, tissue_pixels
from wsi_dino.pathology.tissue_spec import TissueSpec

_PENS = {
    "blue": (30, 60, 170),
    "light blue": (60, 140, 220),
    "green": (20, 140, 70),
    "black": (25, 25, 30),
    "red": (205, 25, 35),
}


@pytest.mark.parametrize("name", _PENS)
@pytest.mark.parametrize("downsample", [1, 8, 32])
def test_a_stroke_of_any_pen_is_found_and_nothing_else(name: str, downsample: int) -> None:
    rgb, _ = draw_tissue(np.random.default_rng(1), (2048, 1536), tumour=True)
    stroke = np.zeros(rgb.shape[:2], np.uint8)
    cv2.line(stroke, (200, 300), (1700, 1300), 1, 160)
    rgb = np.where(stroke[..., None] > 0, np.uint8(_PENS[name]), rgb)
    size = (2048 // downsample, 1536 // downsample)
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    truth = cv2.resize(stroke, size, interpolation=cv2.INTER_NEAREST) > 0
    far = cv2.dilate(truth.astype(np.uint8), np.ones((2 * max(1, 128 // downsample) + 1,) * 2)) == 0
    found = find_ink(small, downsample)
    assert found[truth].mean() > 0.95
    assert found[far].mean() < 0.002


def _share_lost(rgb: np.ndarray, downsample: float) -> float:
    tissue = tissue_pixels(Overview(rgb, (downsample, downsample)), TissueSpec(no_pen=False)) > 0
    return float((find_ink(rgb, downsample) & tissue).sum() / tissue.sum())


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
@pytest.mark.parametrize("factor", [1, 4, 16])
def test_less_than_half_a_percent_of_real_sections_is_lost(shared_data: Path, name: str, factor: int) -> None:
    with open_slide(shared_data / "slides" / name) as slide:
        rgb = slide.read_level((0, 0), 0, slide.level_dimensions[0])
    size = (rgb.shape[1] // factor, rgb.shape[0] // factor)
    assert _share_lost(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), factor) < 0.005


def test_less_than_half_a_percent_of_a_thousand_colon_tiles_is_lost(shared_data: Path) -> None:
    files = sorted((shared_data / "histology_tiles").glob("*/*.jpeg"))
    assert len(files) > 1000
    lost = [_share_lost(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB), 1.0) for file in files[::4]]
    assert np.mean(lost) < 0.005


def test_the_real_blue_ink_goes_and_the_tissue_around_it_stays(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "histoprep_slide_with_ink.jpeg") as slide:
        rgb = slide.read_level((0, 0), 0, slide.level_dimensions[0])
    ink = find_ink(rgb, 1.0)
    tissue = tissue_pixels(Overview(rgb, (1.0, 1.0)), TissueSpec(no_pen=False)) > 0
    assert ink[820:930, 3780:3920].mean() > 0.97  # the heart of the stain
    away = np.ones(ink.shape, bool)
    away[600:, 3500:4200] = False
    assert ink[away & tissue].mean() < 0.001
