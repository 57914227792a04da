"""FROC and pointing game: answers computed by hand, and again by a plain loop over the challenge's definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from skimage.measure import label, regionprops

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.detections import suppress_neighbours
from wsi_dino.evaluation.froc import (
    EVALUATION_MPP,
    FALSE_POSITIVES,
    ISOLATED_CELLS,
    Detections,
    compute_froc,
    find_lesions,
)
from wsi_dino.evaluation.localisation_files import froc_picture
from wsi_dino.evaluation.pointing_game import Pointing, point, summarise_pointing, wilson_interval


def _slide(name: str, scores: list[float], hits: list[int], n_lesions: int = 0) -> Detections:
    return Detections(name, np.array(scores), np.array(hits, int), n_lesions, n_lesions == 0)


def test_curve_and_score_by_hand() -> None:
    """Two normal slides, one with two lesions and isolated cells, one with a lesion that nobody finds.

    Falling thresholds: 0.95 isolated cells (nothing), 0.9 lesion 1, 0.8 false positive on a normal slide,
    0.7 lesion 2, 0.6 lesion 1 again, 0.5 outside of lesions on the slide with lesions, 0.4 and 0.3 false positives.
    """
    slides = [
        _slide("tumour", [0.95, 0.9, 0.7, 0.6, 0.5], [ISOLATED_CELLS, 1, 2, 1, 0], 2),
        _slide("missed", [], [], 1),
        _slide("normal-1", [0.8, 0.4], [0, 0]),
        _slide("normal-2", [0.3], [0]),
    ]
    froc = compute_froc(slides)
    assert froc["curve"]["threshold"] == [None, 0.9, 0.8, 0.7, 0.4, 0.3]
    assert froc["curve"]["false_positives"] == [0, 0, 0.5, 0.5, 1, 1.5]
    assert froc["curve"]["sensitivity"] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3])
    # at 1/4 half of the way from 0 to 1/2, where the lower of both points stands first; from 1/2 on 2/3
    assert froc["sensitivity"] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert froc["score"] == pytest.approx((1 / 3 + 5 * 2 / 3) / 6)
    assert (froc["n_lesions"], froc["n_slides"], froc["n_counted"]) == (3, 4, 2)

    every = compute_froc(slides, counted="all")
    assert every["curve"]["threshold"] == [None, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3]
    assert every["curve"]["false_positives"] == [0, 0, 0.25, 0.25, 0.5, 0.75, 1]
    assert every["sensitivity"][0] == pytest.approx(2 / 3)


def _by_the_definition(slides: list[Detections], counted: str) -> float:
    """For each threshold count by looping; then interpolate as the challenge's script does."""
    counting = [slide for slide in slides if counted == "all" or slide.is_normal]
    every = sorted({float(score) for slide in slides for score in slide.scores}, reverse=True)
    curve = [(0.0, 0.0)]
    for threshold in every:
        wrong = sum(
            score >= threshold and hit == 0
            for slide in counting
            for score, hit in zip(slide.scores, slide.hits, strict=True)
        )
        found = sum(
            any(score >= threshold and hit == lesion for score, hit in zip(slide.scores, slide.hits, strict=True))
            for slide in slides
            for lesion in range(1, slide.n_lesions + 1)
        )
        curve.append((wrong / len(counting), found / sum(slide.n_lesions for slide in slides)))
    rates, sensitivities = np.array(curve).T
    return float(np.mean([np.interp(rate, rates, sensitivities) for rate in FALSE_POSITIVES]))


_DETECTION = st.tuples(st.integers(0, 20), st.integers(-1, 3))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(_DETECTION, max_size=12), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 20), max_size=12), min_size=1, max_size=4),
    st.sampled_from(["normal", "all"]),
)
def test_score_is_that_of_a_plain_loop(
    tumour: list[list[tuple[int, int]]], normal: list[list[int]], counted: str
) -> None:
    slides = [
        _slide(f"t{i}", [score / 20 for score, _ in found], [hit for _, hit in found], 3)
        for i, found in enumerate(tumour)
    ]
    slides += [_slide(f"n{i}", [score / 20 for score in wrong], [0] * len(wrong)) for i, wrong in enumerate(normal)]
    froc = compute_froc(slides, counted=counted)  # type: ignore[arg-type]
    assert froc["score"] == pytest.approx(_by_the_definition(slides, counted))


def test_a_perfect_and_a_blind_detector() -> None:
    normal = _slide("n", [0.1], [0])
    assert compute_froc([_slide("t", [0.9, 0.8], [1, 2], 2), normal])["score"] == 1.0
    assert compute_froc([_slide("t", [], [], 2), normal])["score"] == 0.0


def test_nothing_to_find_or_nobody_to_count_is_an_error() -> None:
    with pytest.raises(ConfigError, match="0 lesions"):
        compute_froc([_slide("n", [0.1], [0])])
    with pytest.raises(ConfigError, match="--count-in all"):
        compute_froc([_slide("t", [0.9], [1], 1)])


def _squares(*squares: tuple[int, int, int], size: int = 200) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    for row, column, side in squares:
        mask[row : row + side, column : column + side] = True
    return mask


@pytest.mark.parametrize(("gap_px", "n"), [(5, 1), (6, 1), (7, 2), (20, 2)])
def test_regions_nearer_than_75_um_are_one_lesion(gap_px: int, n: int) -> None:
    """At 10 um/px each region grows by the px nearer than 37.5 um to it, three, and joins what it touches."""
    lesions = find_lesions(_squares((20, 20, 40), (20, 60 + gap_px, 40)), 10.0)
    assert len(lesions.is_itc) == n
    assert lesions.is_itc.sum() == 0


@pytest.mark.parametrize(("side_um", "is_itc"), [(100, True), (140, True), (200, False), (300, False)])
def test_small_regions_are_isolated_tumour_cells(side_um: int, is_itc: bool) -> None:
    """A square of side s grows to about s + 75; its ellipse of equal moments is 1.15 times as long."""
    lesions = find_lesions(_squares((400, 400, side_um // 2), size=900), 2.0)
    assert lesions.longest_um[0] == pytest.approx(1.15 * (side_um + 75), rel=0.06)
    assert lesions.is_itc.tolist() == [is_itc]
    assert lesions.n_to_find == int(not is_itc)


def test_major_axis_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((60, 60)) > 0.985
    lesions = find_lesions(noise, EVALUATION_MPP)
    expected = [region.axis_major_length * EVALUATION_MPP for region in regionprops(label(lesions.labels > 0))]
    assert sorted(lesions.longest_um) == pytest.approx(sorted(expected))
    assert lesions.labels.max() == label(lesions.labels > 0, connectivity=2).max() == len(expected) > 3


def test_holes_are_filled_and_points_find_their_lesion() -> None:
    ring = _squares((20, 20, 100))
    ring[50:90, 50:90] = False
    ring |= _squares((170, 170, 5))
    lesions = find_lesions(ring, 10.0)
    assert lesions.is_itc.tolist() == [False, True]
    um = np.array([[700.0, 700.0], [100.0, 100.0], [1725.0, 1725.0], [-5.0, 5.0], [1e6, 5.0]])
    assert lesions.at(um).tolist() == [1, 0, ISOLATED_CELLS, 0, 0]


def test_no_annotation_no_lesion() -> None:
    lesions = find_lesions(np.zeros((4, 5), bool), 8.0)
    assert (lesions.n_to_find, lesions.at(np.array([[1.0, 1.0]])).tolist()) == (0, [0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1, 2, 2.5, 3.3, 5]))
def test_suppression_is_that_of_a_plain_loop(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    scores, xy = rng.integers(0, 8, 40) / 8, rng.integers(0, 15, (40, 2)).astype(float)
    kept: list[int] = []
    for index in sorted(range(40), key=lambda i: (-scores[i], i)):
        if all(np.hypot(*(xy[index] - xy[other])) > radius for other in kept):
            kept.append(index)
    assert suppress_neighbours(scores, xy, radius).tolist() == kept
    assert suppress_neighbours(np.zeros(0), np.zeros((0, 2)), radius).tolist() == []


def test_pointing_by_hand() -> None:
    """Slides: hit; missed; two equally high tiles of which one lies inside."""
    inside = np.array([True, True, False, False])
    slides = [
        point("hit", np.array([0.1, 0.9, 0.2, 0.3]), inside, np.array([1, 0.6, 0.2, 0])),
        point("missed", np.array([0.1, 0.2, 0.9, 0.3]), inside, np.array([1, 0.6, 0.2, 0])),
        point("tied", np.array([0.9, 0.2, 0.9, 0.3]), inside, np.array([1, 0.6, 0.2, 0])),
    ]
    assert slides[2] == Pointing("tied", 0.5, 0.5, 0.6)
    game = summarise_pointing(slides)
    assert (game["accuracy"], game["n_hits"], game["chance"], game["n_slides"]) == (0.5, 1.5, 0.5, 3)
    with pytest.raises(ConfigError, match="pointing game"):
        summarise_pointing([])


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 8), (8, 8), (40, 49)])
def test_wilson_interval_is_that_of_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high))


def test_picture_of_the_curve_has_its_points() -> None:
    froc = compute_froc([_slide("t", [0.9, 0.2], [1, 2], 2), _slide("n", [0.5, 0.1], [0, 0])])
    svg = froc_picture(froc).svg
    assert "false positives a normal slide" in svg
    assert f"their mean, the score: {froc['score']:.3f}" in svg
