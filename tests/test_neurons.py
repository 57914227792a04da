"""Affinities, fragments, agglomeration and the curve, against truths known by construction."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from toy_neurons import drawn_neurons, write_pair

from wsi_dino.errors import ConfigError, ResultError
from wsi_dino.segmentation.neurons import agglomeration
from wsi_dino.segmentation.neurons.affinities import (
    LONG_RANGE,
    NEAREST,
    balance_weights,
    compute_affinities,
    edges_inside,
    widen_borders,
)
from wsi_dino.segmentation.neurons.agglomeration import Merges, agglomerate, agglomerate_sections
from wsi_dino.segmentation.neurons.blending import Window, blend, voxel_boxes
from wsi_dino.segmentation.neurons.curve import compare, count_fragments, curve_of
from wsi_dino.segmentation.neurons.datasets import open_files
from wsi_dino.segmentation.neurons.floors import has_neighbour, true_affinities
from wsi_dino.segmentation.neurons.fragments import edge_fragments, section_fragments, volume_fragments
from wsi_dino.segmentation.neurons.pictures import colours_of, matched_ids
from wsi_dino.segmentation.neurons.region_graph import build_region_graph
from wsi_dino.segmentation.neurons.request import EmRequest, FragmentSpec
from wsi_dino.segmentation.neurons.run import tell_of_memory
from wsi_dino.segmentation.sliding_window import gaussian

_THRESHOLDS = (0.2, 0.5, 0.8)


def _fragments(affinities: np.ndarray) -> np.ndarray:
    return volume_fragments(lambda z: affinities[:, z], affinities.shape[1:])


def _cloudy_affinities(seed: int, shape: tuple[int, int, int] = (6, 30, 40)) -> np.ndarray:
    clouds = gaussian_filter(np.random.default_rng(seed).random((3, *shape)), (0, 0.7, 1.5, 1.5))
    return ((clouds - clouds.min()) / np.ptp(clouds) * 255).astype(np.uint8)


def _connected(ids: np.ndarray) -> np.ndarray:
    out = np.zeros_like(ids)
    for value in np.unique(ids[ids > 0]):
        parts, _ = label(ids == value)
        out[parts > 0] = parts[parts > 0] + out.max()
    # a voxel alone has no affinity at all
    return np.where(np.bincount(out.ravel())[out] > 1, out, 0)


def test_an_affinity_looks_back_along_its_axis() -> None:
    _, ids = drawn_neurons()
    affinities = compute_affinities(ids, LONG_RANGE)
    rng = np.random.default_rng(0)
    for channel, offset in enumerate(LONG_RANGE):
        for z, y, x in rng.integers((0, 0, 0), ids.shape, (200, 3)):
            back = z - offset[0], y - offset[1], x - offset[2]
            expected = ids[z, y, x] > 0 and (min(back) < 0 or ids[back] == ids[z, y, x])
            assert affinities[channel, z, y, x] == expected
    assert edges_inside(ids.shape, NEAREST)[1, :, 0].sum() == 0


def test_an_offset_beyond_the_volume_leaves_what_the_voxel_is() -> None:
    ids = np.ones((2, 5, 5), np.uint32)
    assert compute_affinities(ids, LONG_RANGE).all()


def test_widening_removes_exactly_the_voxels_that_see_another_neuron() -> None:
    _, ids = drawn_neurons((3, 30, 30))
    touching = np.where(ids == 0, 1, ids)
    widened = widen_borders(touching)
    for z, y, x in np.ndindex(touching.shape):
        window = touching[z, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        assert widened[z, y, x] == (0 if len(np.unique(window)) > 1 else touching[z, y, x])


def test_balanced_weights_let_both_sides_count_alike_and_ignore_the_unknown() -> None:
    rng = np.random.default_rng(0)
    target, known = rng.random((3, 20, 20)) < 0.8, rng.random((3, 20, 20)) < 0.9
    weights = balance_weights(target, known)
    assert not weights[~known].any()
    assert weights[target].sum() == pytest.approx(weights[~target].sum(), rel=1e-5)


def test_truth_affinities_give_the_truth_back() -> None:
    _, ids = drawn_neurons((10, 60, 80), 20)
    truth = _connected(ids)
    affinities = compute_affinities(truth).astype(np.float32)
    fragments = edge_fragments(affinities)
    merges = agglomerate(affinities, fragments, (0.5,), "mean")
    assert compare(truth, merges.segmentation(fragments, 0)) == pytest.approx(
        {"voi_split": 0, "voi_merge": 0, "voi": 0, "arand": 0}, abs=1e-9
    )


def test_membranes_of_drawn_neurons_are_found_through_sections_too() -> None:
    _, ids = drawn_neurons((10, 60, 80), 20)
    affinities = compute_affinities(ids).astype(np.float32) * 0.9
    fragments = _fragments(affinities)
    assert fragments.min() == 1
    curve = curve_of(count_fragments(ids, fragments), agglomerate(affinities, fragments, _THRESHOLDS))
    assert min(row["voi"] for row in curve) < 0.2


def test_fragments_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    affinities = rng.integers(0, 256, (3, 5, 40, 40), dtype=np.uint8)
    whole = _fragments(affinities)
    last = 0
    for z in range(5):
        section = section_fragments(affinities[:, z], last + 1)
        np.testing.assert_array_equal(section, whole[z])
        last = int(section.max())
    assert len(np.unique(whole)) == last


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_affinities_without_a_border_or_without_a_neuron_still_give_fragments(value: float) -> None:
    for make in (_fragments, edge_fragments):
        assert make(np.full((3, 2, 6, 6), value, np.float32)).min() == 1


def test_agglomeration_leaves_its_input_and_gives_each_threshold_its_own() -> None:
    affinities = np.random.default_rng(0).random((3, 4, 30, 30)).astype(np.float32)
    fragments = _fragments(affinities)
    before = fragments.copy()
    merges = agglomerate(affinities, fragments, (0.7, 0.3, 0.5))
    np.testing.assert_array_equal(fragments, before)
    n_segments = merges.segments.max(1)
    assert merges.thresholds == (0.3, 0.5, 0.7)
    assert n_segments[0] > n_segments[1] > n_segments[2]


@pytest.mark.parametrize("scoring", ["mean", "quantile-10", "quantile-50", "quantile-90", "max-quantile-50"])
@pytest.mark.parametrize("method", [_fragments, edge_fragments])
def test_sections_one_after_the_other_join_as_waterz_joins_the_whole(
    scoring: str, method: Callable[[np.ndarray], np.ndarray]
) -> None:
    thresholds = np.linspace(0.05, 0.95, 19)
    for seed in range(3):
        affinities = _cloudy_affinities(seed)
        fragments = method(affinities)
        whole = agglomerate(affinities, fragments, thresholds, scoring)
        assert len(np.unique(whole.segments.max(1))) > 4
        parts = agglomerate_sections(lambda z: (affinities[:, z], fragments[z]), 6, thresholds, scoring)  # noqa: B023
        np.testing.assert_array_equal(parts.segments, whole.segments)


def test_a_volume_beyond_the_limit_is_joined_as_one_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    affinities = _cloudy_affinities(5)
    fragments = _fragments(affinities)

    def section(z: int) -> tuple[np.ndarray, np.ndarray]:
        return affinities[:, z], fragments[z]

    below = agglomeration.agglomerate_volume(section, fragments.shape, _THRESHOLDS)
    monkeypatch.setattr(agglomeration, "MOST_VOXELS_AT_ONCE", fragments.size - 1)
    monkeypatch.setattr(agglomeration, "agglomerate", None)
    beyond = agglomeration.agglomerate_volume(section, fragments.shape, _THRESHOLDS)
    assert beyond.thresholds == below.thresholds
    np.testing.assert_array_equal(beyond.segments, below.segments)


def test_float_affinities_fall_into_the_bins_that_waterz_has() -> None:
    affinities = np.random.default_rng(0).random((3, 3, 20, 20)).astype(np.float32)
    fragments = _fragments(affinities)
    whole = agglomerate(affinities, fragments, _THRESHOLDS)
    parts = agglomerate_sections(lambda z: (affinities[:, z], fragments[z]), 3, _THRESHOLDS)
    np.testing.assert_array_equal(parts.segments, whole.segments)


def test_a_region_graph_counts_each_pair_of_neighbours_once() -> None:
    affinities, fragments = _cloudy_affinities(0, (3, 6, 7)), np.arange(3 * 6 * 7).reshape(3, 6, 7) // 5 + 1
    graph = build_region_graph((affinities[:, z], fragments[z]) for z in range(3))
    expected: Counter[tuple[int, int, int]] = Counter()
    for place in np.ndindex(fragments.shape):
        for axis in range(3):
            back = tuple(p - (i == axis) for i, p in enumerate(place))
            pair = sorted((int(fragments[place]), int(fragments[back])))
            if min(back) >= 0 and pair[0] != pair[1]:
                expected[pair[0], pair[1], int(affinities[(axis, *place)])] += 1
    contact = np.repeat(np.arange(len(graph)), np.diff(graph.bounds))
    columns = graph.smaller[contact], graph.greater[contact], graph.bins, graph.counts
    assert {(int(a), int(b), int(c)): int(n) for a, b, c, n in zip(*columns, strict=True)} == expected


def test_one_fragment_alone_and_fragments_that_never_touch_stay() -> None:
    affinities, alone = np.full((3, 4, 4), 200, np.uint8), np.ones((4, 4), np.uint32)
    for scoring in ("mean", "quantile-50"):
        assert agglomerate_sections(lambda z: (affinities, alone), 2, (0.5,), scoring).segments.tolist() == [[0, 1]]
    with pytest.raises(ConfigError, match="ids must be 1"):
        agglomerate_sections(lambda z: (affinities, 0 * alone), 2, (0.5,))


def test_agglomeration_prints_nothing_on_stdout() -> None:
    code = (
        "import numpy as np\n"
        "from wsi_dino.segmentation.neurons.agglomeration import agglomerate\n"
        "f = np.arange(1, 9, dtype=np.uint64).reshape(2, 2, 2)\n"
        "agglomerate(np.full((3, 2, 2, 2), 0.9, np.float32), f, (0.5,))\n"
        "from wsi_dino.segmentation.neurons.fragments import edge_fragments\n"
        "edge_fragments(np.full((3, 2, 2, 2), 0.9, np.float32))\n"
        "print('said')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "said\n"


def test_wrong_fragments_thresholds_and_scorings_are_refused() -> None:
    affinities, fragments = np.ones((3, 1, 2, 2), np.float32), np.array([[[1, 2], [3, 5]]], np.uint64)
    with pytest.raises(ConfigError, match="without gap"):
        agglomerate(affinities, fragments, (0.5,))
    with pytest.raises(ConfigError, match="0 to 1"):
        agglomerate(affinities, fragments, (1.5,))
    with pytest.raises(ConfigError, match="quantile"):
        agglomerate(affinities, fragments, (0.5,), "quantile-51")
    with pytest.raises(ResultError, match="no voxel"):
        count_fragments(np.zeros_like(fragments), fragments)


def test_the_curve_from_counts_equals_scikit_image_on_voxels() -> None:
    from skimage.metrics import adapted_rand_error, variation_of_information

    _, ids = drawn_neurons()
    rng = np.random.default_rng(0)
    fragments = rng.integers(1, 40, ids.shape).astype(np.uint64)
    segments = np.concatenate([[0], rng.integers(1, 6, 39)]).astype(np.uint32)
    (row,) = curve_of(count_fragments(ids, fragments), Merges((0.5,), segments[None]))
    found = segments[fragments]
    split, merge = variation_of_information(ids, found, ignore_labels=(0,))
    arand = adapted_rand_error(ids, found, ignore_labels=(0,))[0]
    assert (row["voi_split"], row["voi_merge"], row["arand"]) == pytest.approx((split, merge, arand))


def test_edges_of_a_large_volume_are_told_of_before_the_start(tmp_path: Path) -> None:
    dataset = open_files(
        write_pair(tmp_path, "a", *drawn_neurons()), write_pair(tmp_path, "b", *drawn_neurons(seed=1)), name="x"
    )
    large = replace(dataset, test=replace(dataset.test, labels=replace(dataset.test.labels, shape=(8, 2500, 2500))))
    for method, of, n_told in (("edges", dataset, 0), ("edges", large, 1), ("sections", large, 0)):
        told: list[str] = []
        tell_of_memory(EmRequest(tmp_path, "unet3d", fragments=FragmentSpec(method=method)), of, told.append)
        assert len(told) == n_told
        assert not told or "50 million voxels" in told[0]


def test_the_truths_own_affinities_are_exact_but_for_voxels_alone() -> None:
    _, ids = drawn_neurons((6, 40, 50))
    truth = _connected(ids)
    rng = np.random.default_rng(0)
    for number, place in enumerate(rng.integers(0, truth.shape, (30, 3))):
        truth[tuple(place)] = 1000 + number
    is_kept = has_neighbour(truth)
    around = np.pad(truth, 1)
    for z, y, x in np.ndindex(truth.shape):
        near = [(0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)]
        same = any(around[z + a, y + b, x + c] == truth[z, y, x] for a, b, c in near)
        assert is_kept[z, y, x] == (truth[z, y, x] > 0 and same)
    assert not is_kept[truth >= 1000].any()
    affinities = np.stack([true_affinities(truth)(z) for z in range(len(truth))], 1)
    fragments = edge_fragments(affinities)
    found = agglomerate(affinities, fragments, (0.5,), "mean").segmentation(fragments, 0)
    assert compare(np.where(is_kept, truth, 0), found)["voi_merge"] == 0


def test_voxels_of_fragments_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 4, (3, 9, 5)), 3, 2).astype(np.uint64) * 2**40
    truth[1] = 0  # a section without a neuron
    fragments = np.repeat(rng.integers(1, 5, (3, 9, 3)), 5, 2).astype(np.uint32) + np.uint32(2**31)
    counts = count_fragments(truth, fragments)
    told: Counter[tuple[int, int]] = Counter()
    for true_id, fragment, n in zip(counts.truth, counts.fragment, counts.n_voxels, strict=True):
        told[int(true_id), int(fragment)] += int(n)
    voxels = zip(truth.ravel().tolist(), fragments.ravel().tolist(), strict=True)
    assert told == Counter(pair for pair in voxels if pair[0])


def test_windows_blended_by_slabs_equal_a_whole_volume_to_the_last_bit() -> None:
    shape, rng = (13, 20, 22), np.random.default_rng(0)
    boxes = voxel_boxes(shape, (5, 8, 9), 0.5)
    answers = [rng.random((3, *(side.stop - side.start for side in box))).astype(np.float32) for box in boxes]
    got = np.full((3, *shape), np.nan, np.float32)
    sizes = []

    def emit(first: int, values: np.ndarray) -> None:
        got[:, first : first + values.shape[1]] = values
        sizes.append(values.shape[1])

    windows = [Window(box, lambda a=a: a) for box, a in zip(boxes, answers, strict=True)]  # type: ignore[misc]
    blend(shape, 3, windows[::-1], emit)
    total, weights = np.zeros((3, *shape), np.float32), np.zeros(shape, np.float32)
    for box, values in sorted(zip(boxes[::-1], answers[::-1], strict=True), key=lambda pair: pair[0][0].start):
        total[(slice(None), *box)] += values * gaussian(values.shape[1:])
        weights[box] += gaussian(values.shape[1:])
    np.testing.assert_array_equal(got, total / weights)
    assert max(sizes) <= 5


def test_windows_that_agree_leave_no_seam() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((3, 9, 30, 30)).astype(np.float32)
    windows = [
        Window(box, lambda box=box: truth[(slice(None), *box)])  # type: ignore[misc]
        for box in voxel_boxes(truth.shape[1:], (4, 12, 12))
    ]
    got = np.empty_like(truth)
    blend(truth.shape[1:], 3, windows, lambda z, v: got.__setitem__((slice(None), slice(z, z + v.shape[1])), v))
    np.testing.assert_allclose(got, truth, atol=1e-6)


def test_colours_are_the_same_for_an_id_wherever_it_is() -> None:
    first, second = colours_of(np.array([5, 9])), colours_of(np.array([[9], [5]]))
    np.testing.assert_array_equal(first[0], second[1, 0])
    segments, truth = np.array([[3, 3, 4, 4]]), np.array([[1, 1, 1, 2]])
    assert matched_ids(segments, truth).tolist()[0][:2] == [1, 1]
