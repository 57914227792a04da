"""Tissue segmentation on phantoms of known shape, and against a plain reading of CLAM's steps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import ConfigError, SlideError
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.synthetic import write_pyramid
from wsi_dino.pathology.tissue import Overview, find_tissue, read_for_clam, read_for_tissue, seg_level_of, tissue_pixels
from wsi_dino.pathology.tissue_mask import AreaTable, rasterise
from wsi_dino.pathology.tissue_spec import CLAM_DEFAULTS, PRESETS, TissueSpec
from wsi_dino.pathology.tissue_tiatoolbox import require_tiatoolbox

_PINK, _WHITE = (210, 120, 170), (243, 243, 243)


def _phantom(height: int = 400, width: int = 600) -> np.ndarray:
    """A pink block of 300 x 200 px with a white hole of 100 x 50 px in it."""
    rgb = np.full((height, width, 3), _WHITE, np.uint8)
    rgb[100:300, 150:450] = _PINK
    rgb[150:200, 200:300] = _WHITE
    return rgb


def _plain_clam(rgb: np.ndarray, scale: tuple[float, float], spec: TissueSpec) -> tuple[list, list]:
    """CLAM's steps, written down one after the other."""
    saturation = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[:, :, 1]
    smooth = cv2.medianBlur(saturation, spec.mthresh)
    if spec.use_otsu:
        _, binary = cv2.threshold(smooth, 0, 255, cv2.THRESH_OTSU + cv2.THRESH_BINARY)
    else:
        binary = (smooth > spec.sthresh).astype(np.uint8) * 255
    if spec.close > 0:
        binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, np.ones((spec.close, spec.close), np.uint8))
    unit = int(spec.ref_patch_size**2 / (scale[0] * scale[1]))
    outlines, hierarchy = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours, holes = [], []
    for index in range(len(outlines)):
        if hierarchy[0][index][3] != -1:
            continue
        inner = [outlines[i] for i in range(len(outlines)) if hierarchy[0][i][3] == index]
        area = cv2.contourArea(outlines[index]) - sum(cv2.contourArea(hole) for hole in inner)
        if area == 0 or not spec.a_t * unit < area:
            continue
        largest = sorted(inner, key=cv2.contourArea, reverse=True)[: spec.max_n_holes]
        contours.append(np.array(outlines[index] * scale, dtype="int32"))
        holes.append([np.array(h * scale, dtype="int32") for h in largest if cv2.contourArea(h) > spec.a_h * unit])
    return contours, holes


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.tuples(st.floats(1, 40), st.floats(1, 40)),
    median=st.sampled_from([1, 3, 7]),
    close=st.integers(0, 4),
    otsu=st.booleans(),
    areas=st.tuples(st.integers(0, 30), st.integers(0, 10), st.integers(0, 4)),
)
def test_contours_equal_the_plain_steps(
    seed: int, scale: tuple[float, float], median: int, close: int, otsu: bool, areas: tuple[int, int, int]
) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((60, 70)), (0, 0), 1.6)
    rgb = np.where((noise > 0.5)[..., None], _PINK, _WHITE).astype(np.uint8)
    spec = TissueSpec(
        mthresh=median, close=close, use_otsu=otsu, a_t=areas[0], a_h=areas[1], max_n_holes=areas[2],
        ref_patch_size=30, no_pen=False,
    )  # fmt: skip
    found = find_tissue(Overview(rgb, scale), spec, every_point=True)
    contours, holes = _plain_clam(rgb, scale, spec)
    assert [c.tolist() for c in found.contours] == [c.reshape(-1, 2).tolist() for c in contours]
    assert [[h.tolist() for h in hs] for hs in found.holes] == [[h.reshape(-1, 2).tolist() for h in hs] for hs in holes]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    wh=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    half_side=st.integers(0, 12),
    limit=st.integers(0, 255),
)
def test_counting_gives_what_a_median_filter_gives(seed: int, wh: tuple[int, int], half_side: int, limit: int) -> None:
    value = np.random.default_rng(seed).integers(0, 256, (wh[1], wh[0]), dtype=np.uint8)
    rgb = np.stack([np.full_like(value, 255), 255 - value, 255 - value], -1)  # its saturation is `value`
    spec = TissueSpec(mthresh=2 * half_side + 1, sthresh=limit, close=0, no_pen=False)
    expected = cv2.medianBlur(value, spec.mthresh) > limit
    assert (tissue_pixels(Overview(rgb, (1, 1)), spec) == expected * 255).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 64), st.booleans())
def test_the_mask_of_the_contours_is_the_mask_they_came_from(seed: int, scale: float, every_point: bool) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((60, 70)), (0, 0), 1.8)
    rgb = np.where((noise > 0.5)[..., None], _PINK, _WHITE).astype(np.uint8)
    overview = Overview(rgb, (scale, scale))
    spec = TissueSpec(mthresh=1, close=0, a_t=0, a_h=0, max_n_holes=10_000, no_pen=False)
    mask = find_tissue(overview, spec, every_point=every_point).mask(overview)
    truth = (noise > 0.5).astype(np.uint8)
    assert not mask[truth == 0].any()
    # left out are whole pieces only: those whose outline has no area beyond its holes (lines, thin webs)
    n_pieces, pieces = cv2.connectedComponents(truth, connectivity=8)
    shares = [mask[pieces == piece].mean() for piece in range(1, n_pieces)]
    assert set(shares) <= {0.0, 1.0}
    assert mask.sum() > 0.5 * truth.sum()


def test_a_phantom_with_a_hole_gives_its_area_at_any_scale() -> None:
    overview = Overview(_phantom(), (8.0, 4.0))
    tissue = find_tissue(overview, TissueSpec(a_t=0, a_h=0))
    assert len(tissue.contours) == 1
    assert len(tissue.holes[0]) == 1
    assert abs(int(tissue.mask(overview).sum()) - (300 * 200 - 100 * 50)) < 200
    # an even closing kernel moves the outline by up to one px, as in CLAM
    assert np.abs(tissue.contours[0].min(axis=0) - [150 * 8, 100 * 4]).tolist() <= [8, 4]


def test_blank_and_black_slides_have_no_tissue() -> None:
    for value in (0, 128, 255):
        rgb = np.full((100, 120, 3), value, np.uint8)
        for use_otsu in (False, True):
            assert find_tissue(Overview(rgb, (16.0, 16.0)), TissueSpec(a_t=0, use_otsu=use_otsu)).contours == []


def test_ink_is_tissue_only_when_asked_for() -> None:
    rgb = _phantom()
    rgb[320:390, 20:580] = (30, 60, 170)
    overview = Overview(rgb, (16.0, 16.0))
    without = find_tissue(overview, TissueSpec()).mask(overview)
    with_pen = find_tissue(overview, TissueSpec(no_pen=False)).mask(overview)
    assert without[325:385, 30:570].sum() == 0
    assert with_pen[325:385, 30:570].all()
    assert np.array_equal(without[:300], with_pen[:300])


def test_presets_are_clams() -> None:
    assert TissueSpec.preset("biopsy").model_dump().items() >= {
        "seg_level": -1, "sthresh": 15, "mthresh": 11, "close": 2, "use_otsu": False, "a_t": 1.0, "a_h": 1.0,
        "max_n_holes": 2, "ref_patch_size": 512,
    }.items()  # fmt: skip
    assert {name: (values["a_t"], values["close"]) for name, values in PRESETS.items()} == {
        "biopsy": (1, 2), "resection": (100, 4), "tcga": (16, 4),
    }  # fmt: skip
    assert TissueSpec.clam_defaults().a_t == CLAM_DEFAULTS["a_t"] == 100
    assert TissueSpec.preset("tcga", sthresh=20).sthresh == 20


@pytest.mark.parametrize("wrong", [{"mthresh": 8}, {"sthresh": 256}, {"a_t": -1}, {"sthres": 8}, {"segmenter": "x"}])
def test_wrong_parameters_are_named(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TissueSpec.checked(**wrong)
    with pytest.raises(ConfigError, match="Did you mean 'biopsy'"):
        TissueSpec.preset("biopsie")


def test_the_level_is_the_coarsest_up_to_64_and_an_absent_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    write_pyramid(path, np.full((4096, 4096, 3), 240, np.uint8), downsamples=(1, 4, 16, 64, 128))
    with open_slide(path) as slide, open_slide(path, backend="openslide") as reference:
        assert seg_level_of(slide, TissueSpec()) == seg_level_of(reference, TissueSpec()) == 3
        assert seg_level_of(slide, TissueSpec(seg_level=1)) == 1
        with pytest.raises(SlideError, match="--seg-level 5"):
            seg_level_of(slide, TissueSpec(seg_level=5))


@pytest.mark.parametrize("width", [8190, 8192, 8199, 8250])
def test_the_chosen_level_is_openslides_where_downsamples_are_odd(tmp_path: Path, width: int) -> None:
    import openslide
    import tifffile

    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level, side in enumerate((width, width // 4, 128)):
            pixels = np.full((side, side, 3), 200, np.uint8)
            tiff.write(pixels, tile=(256, 256), subfiletype=int(level > 0), compression="zlib", photometric="rgb")
    for downsample in (3.99, 4, 4.001, 63.99, 64, 64.06):
        expected = openslide.OpenSlide(path).get_best_level_for_downsample(downsample)
        for backend in ("tiled-tiff", "openslide"):
            with open_slide(path, backend=backend) as slide:
                assert slide.best_level_for_downsample(downsample) == expected


def test_a_large_image_of_one_level_is_averaged_down_unless_the_level_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "s.png"
    cv2.imwrite(str(path), np.full((500, 5000, 3), 230, np.uint8))
    with open_slide(path) as slide:
        assert max(read_for_tissue(slide, TissueSpec()).wh) <= 2048
        assert read_for_tissue(slide, TissueSpec(seg_level=0)).wh == (5000, 500)
        assert read_for_clam(slide, TissueSpec()).wh == (5000, 500)


def test_transparent_pixels_are_background(tmp_path: Path) -> None:
    rgba = np.zeros((1024, 1024, 4), np.uint8)
    rgba[256:768, 256:768] = (*_PINK, 255)
    path = tmp_path / "s.tif"
    write_pyramid(path, rgba, downsamples=(1, 4), compression="deflate")
    with open_slide(path) as slide:
        spec = TissueSpec(a_t=0)
        for read in (read_for_tissue, read_for_clam):
            overview = read(slide, spec)
            area = find_tissue(overview, spec).mask(overview).mean()
            assert area == pytest.approx(0.25, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_area_table_counts_whole_pixels_exactly(seed: int, side: int) -> None:
    mask = (np.random.default_rng(seed).random((17, 23)) > 0.5).astype(np.uint8)
    xy = np.random.default_rng(seed + 1).integers(-3, 25, (40, 2))
    expected = [
        mask[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)].sum() / side**2 for x, y in xy.tolist()
    ]
    assert np.allclose(AreaTable(mask, (1.0, 1.0)).fraction(xy, (side, side)), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_area_table_on_a_coarse_mask_equals_a_fine_one(seed: int, scale: int) -> None:
    mask = (np.random.default_rng(seed).random((11, 13)) > 0.4).astype(np.uint8)
    fine = np.kron(mask, np.ones((scale, scale), np.uint8))
    xy = np.random.default_rng(seed + 1).integers(0, 50, (30, 2))
    coarse = AreaTable(mask, (scale, scale)).fraction(xy, (9, 5))
    assert np.allclose(coarse, AreaTable(fine, (1.0, 1.0)).fraction(xy, (9, 5)), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 9), st.integers(1, 30), st.integers(1, 30))
def test_area_table_gives_a_lattice_what_it_gives_points(seed: int, scale: float, width: int, height: int) -> None:
    mask = (np.random.default_rng(seed).random((11, 13)) > 0.4).astype(np.uint8)
    table = AreaTable(mask, (scale, scale * 1.1))
    columns, rows = np.arange(0, 120, 7), np.arange(0, 100, 9)
    points = np.array([(x, y) for y in rows for x in columns])
    expected = table.fraction(points, (width, height)).reshape(len(rows), len(columns))
    assert np.allclose(table.lattice_fraction(columns, rows, (width, height)), expected, atol=1e-6)


def test_islands_in_holes_are_drawn() -> None:
    def box(low: int, high: int) -> np.ndarray:
        return np.array([[low, low], [high, low], [high, high], [low, high]])

    mask = rasterise([box(0, 90), box(40, 50)], [[box(20, 70)], []], (1.0, 1.0), (100, 100))
    assert (mask[10, 10], mask[30, 30], mask[45, 45], mask[95, 95]) == (1, 0, 1, 0)


@pytest.mark.parametrize("segmenter", ["tiatoolbox-otsu", "tiatoolbox-morphological"])
def test_tiatoolbox_finds_the_phantom_and_leaves_logging_alone(
    segmenter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    pytest.importorskip("tiatoolbox", reason="the extra is not installed")
    require_tiatoolbox()
    before = list(logging.getLogger().handlers)
    noise = np.random.default_rng(0).integers(-6, 7, (400, 600, 1))  # Otsu needs more than two grey values
    overview = Overview((_phantom() + noise).astype(np.uint8), (16.0, 16.0))
    mask = find_tissue(overview, TissueSpec.checked(segmenter=segmenter, a_t=0)).mask(overview)
    assert mask[110:140, 160:440].mean() > 0.9
    assert mask[:80].mean() < 0.05
    assert logging.getLogger().handlers == before
    assert capsys.readouterr().out == ""
