"""Coordinates against CLAM's own outputs, and against a plain per-point reading of its rules."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.pathology.clam_grid import ClamGridPlan, ContourRule, plan_clam_grid
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.tissue import find_tissue, read_for_clam
from wsi_dino.pathology.tissue_spec import TissueSpec

_SLIDES = {
    "cmu": "CMU-1-Small-Region.svs",
    "cmupyr": "CMU-1-Small-Region.derived-pyramid.tif",
    "tcga7395": "TCGA-CR-7395-01A-01-TS1.svs",
}


def _golden_spec(meta: dict) -> TissueSpec:
    seg = {key: meta["seg"][key] for key in ("sthresh", "mthresh", "close", "use_otsu")}
    return TissueSpec.clam_defaults(**seg, **meta["filter"], no_pen=False)


@pytest.mark.parametrize("backend", ["auto", "openslide"])
def test_equals_every_golden_file(shared_data: Path, shared_golden: Path, backend: str) -> None:
    files = sorted((shared_golden / "clam").glob("*.npz"))
    assert files
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            meta, expected = json.loads(str(stored["meta"])), stored["coords"]
        patch = meta["patch"]
        with open_slide(shared_data / "slides" / _SLIDES[file.name.split("__")[0]], backend=backend) as slide:
            tissue = find_tissue(read_for_clam(slide, spec := _golden_spec(meta)), spec, every_point=True)
            plan = ClamGridPlan(
                tile_px=patch["patch_size"],
                stride_px=patch["step_size"],
                downsample_xy=slide.level_downsamples[patch["patch_level"]],
                contour_rule=patch["contour_fn"],
                padding=patch["use_padding"],
                slide_wh=slide.level_dimensions[0],
            )
        assert [len(holes) for holes in tissue.holes] == meta["n_holes"], file.name
        assert np.array_equal(plan_clam_grid(tissue.contours, tissue.holes, plan), expected), file.name


def _plain_grid(contours: list[np.ndarray], holes: list[list[np.ndarray]], plan: ClamGridPlan) -> list[tuple[int, int]]:
    """One point at a time, with OpenCV's own point test."""
    down_x, down_y = int(plan.downsample_xy[0]), int(plan.downsample_xy[1])
    side_x, side_y = plan.tile_px * down_x, plan.tile_px * down_y
    result = []
    for contour, inner in zip(contours, holes, strict=True):
        x0, y0, width, height = cv2.boundingRect(contour.reshape(-1, 1, 2))
        stop_x, stop_y = x0 + width, y0 + height
        if not plan.padding:
            stop_x = min(stop_x, plan.slide_wh[0] - side_x + 1)
            stop_y = min(stop_y, plan.slide_wh[1] - side_y + 1)
        for x in range(x0, stop_x, plan.stride_px * down_x):
            for y in range(y0, stop_y, plan.stride_px * down_y):
                if _plain_rule(contour, x, y, side_x, plan.contour_rule) and not any(
                    _side(hole, x + side_x / 2, y + side_x / 2) > 0 for hole in inner
                ):
                    result.append((x, y))
    return result


def _side(polygon: np.ndarray, x: float, y: float) -> float:
    return cv2.pointPolygonTest(polygon.reshape(-1, 1, 2), (float(x), float(y)), False)


def _plain_rule(contour: np.ndarray, x: int, y: int, side: int, rule: str) -> bool:
    if rule == "basic":
        return _side(contour, x, y) >= 0
    centre_x, centre_y = x + side // 2, y + side // 2
    shift = 0 if rule == "center" else int(side // 2 * 0.5)
    if shift == 0:
        return _side(contour, centre_x, centre_y) >= 0
    tests = [_side(contour, centre_x + i * shift, centre_y + j * shift) >= 0 for i in (-1, 1) for j in (-1, 1)]
    return any(tests) if rule == "four_pt" else all(tests)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.tuples(st.floats(1.0, 20.0), st.floats(1.0, 20.0)),
    level=st.tuples(st.floats(1.0, 4.2), st.floats(1.0, 4.2)),
    tile_px=st.integers(1, 60),
    stride_px=st.integers(3, 60),
    rule=st.sampled_from(["four_pt", "four_pt_hard", "center", "basic"]),
    padding=st.booleans(),
    max_n_holes=st.integers(0, 3),
)
def test_equals_the_plain_reading_on_blobs_with_holes(
    seed: int,
    scale: tuple[float, float],
    level: tuple[float, float],
    tile_px: int,
    stride_px: int,
    rule: ContourRule,
    padding: bool,
    max_n_holes: int,
) -> None:
    noise = np.random.default_rng(seed).random((40, 44))
    rgb = np.where((cv2.GaussianBlur(noise, (0, 0), 2) > 0.49)[..., None], (200, 60, 160), (240, 240, 240))
    from wsi_dino.pathology.tissue import Overview

    spec = TissueSpec(mthresh=3, close=2, a_t=3, a_h=1, max_n_holes=max_n_holes, ref_patch_size=20, no_pen=False)
    tissue = find_tissue(Overview(rgb.astype(np.uint8), scale), spec, every_point=True)
    plan = ClamGridPlan(tile_px, stride_px, level, rule, padding, (int(44 * scale[0]), int(40 * scale[1])))
    found = plan_clam_grid(tissue.contours, tissue.holes, plan)
    assert found.tolist() == [list(pair) for pair in _plain_grid(tissue.contours, tissue.holes, plan)]
