"""Tile probability, deletion and insertion, and tiles of each class: by hand, and against the model run plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi_dino.evaluation.deletion_insertion import SlideCurves, follow, summarise_curves
from wsi_dino.evaluation.looking_pictures import MosaicRow, MosaicTile, faithfulness_picture, mosaic_picture
from wsi_dino.mil.abmil import ABMIL
from wsi_dino.mil.attention_file import SlideAttention
from wsi_dino.mil.faithfulness import SubsetScores, follow_attention
from wsi_dino.mil.mil_model import ModelOutput
from wsi_dino.mil.tile_probability import softmax, tile_logits
from wsi_dino.mil.top_tiles import TopTiles


def _model(n_classes: int = 3, *, relu: bool = False) -> ABMIL:
    torch.manual_seed(0)
    model = ABMIL(10, n_classes, hidden_dim=16, attention_dim=8, relu=relu).eval()
    model.attention_w.weight.data *= 20  # far from even
    model.head.weight.data *= 5
    model.feature_scale.fill_(1.3)
    return model


def _features(n: int = 37, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 10)).astype(np.float32)


def _plainly(model: nn.Module, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        seen = model(torch.from_numpy(features)[None], torch.ones(1, len(features), dtype=torch.bool))
    return seen.outputs[0].double().numpy(), seen.attention[0].double().numpy()


@pytest.mark.parametrize("relu", [False, True])
def test_tile_logits_are_the_head_on_each_projection(relu: bool) -> None:
    model, features = _model(relu=relu), _features()
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    hidden = features / weights["feature_scale"] @ weights["projection.weight"].T + weights["projection.bias"]
    hidden = np.maximum(hidden, 0) if relu else hidden
    expected = hidden @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(tile_logits(model, features), expected, atol=1e-5)
    np.testing.assert_allclose(tile_logits(model, features.astype(np.float16)), expected, atol=2e-2)


def test_logits_of_the_slide_are_those_of_tiles_weighted_by_attention() -> None:
    model, features = _model(), _features()
    logits, raw = _plainly(model, features)
    np.testing.assert_allclose(softmax(raw) @ tile_logits(model, features), logits, atol=1e-5)


def test_tile_logits_do_not_depend_on_how_many_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = _model(), _features()
    whole = tile_logits(model, features)
    monkeypatch.setattr("wsi_dino.mil.tile_probability._TILES_AT_ONCE", 5)
    np.testing.assert_allclose(tile_logits(model, features), whole, atol=1e-6)


def test_curves_by_hand() -> None:
    """Four tiles worth 4, 3, 2, 1; the score is the share of worth that is kept, a tenth of the sum."""
    worth = np.array([3.0, 1.0, 4.0, 2.0])
    curves = follow(worth, lambda kept: worth[kept].sum() / 10, n_steps=3, n_random=4, rng=np.random.default_rng(0))
    assert curves["deletion"].tolist() == pytest.approx([1.0, 0.6, 0.3, 0.1])
    assert curves["insertion"].tolist() == pytest.approx([0.4, 0.7, 0.9, 1.0])
    areas = SlideCurves("s", "p", 0, "a", 4, curves).areas
    assert areas["deletion"] == pytest.approx((1.6 / 2 + 0.9 / 2 + 0.4 / 2) / 3)
    assert areas["insertion"] == pytest.approx((1.1 / 2 + 1.6 / 2 + 1.9 / 2) / 3)
    assert areas["deletion_gain"] == pytest.approx(areas["random_deletion"] - areas["deletion"])
    assert areas["deletion_gain"] > 0 < areas["insertion_gain"]


def test_one_tile_has_flat_curves() -> None:
    curves = follow(np.array([1.0]), lambda kept: float(len(kept)), n_steps=5, n_random=2, rng=np.random.default_rng())
    assert all(curve.tolist() == [1.0] * 6 for curve in curves.values())


def test_gain_of_an_order_that_tells_nothing_is_zero() -> None:
    rng = np.random.default_rng(0)
    slides = []
    for index in range(60):
        worth = rng.random(20)
        curves = follow(rng.random(20), lambda kept, w=worth: w[kept].mean(), n_steps=10, n_random=5, rng=rng)
        slides.append(SlideCurves(f"s{index}", f"p{index // 2}", 0, "a", 20, curves))
    summary = summarise_curves(slides, n_random=5)
    assert (summary["n_slides"], summary["n_patients"]) == (60, 30)
    for way in ("deletion", "insertion"):
        gain = summary[way]["gain"]
        assert gain["low"] < 0 < gain["high"]
        assert gain["value"] == pytest.approx(np.mean([row[f"{way}_gain"] for row in summary["slides"]]))
        assert summary[way]["attention"]["value"] == pytest.approx(summary[way]["random"]["value"], abs=0.05)


def test_interval_resamples_patients_not_slides() -> None:
    """The same two patients with one slide each, or with fifty equal ones: the interval stays as wide."""

    def widths(n: int) -> float:
        flat = {name: np.zeros(3) for name in ("insertion", "random_deletion", "random_insertion")}
        slides = [
            SlideCurves(f"{patient}-{i}", patient, 0, "a", 9, {"deletion": np.full(3, value), **flat})
            for patient, value in (("p", 0.2), ("q", 0.8))
            for i in range(n)
        ]
        interval = summarise_curves(slides, n_random=1)["deletion"]["attention"]
        return float(interval["high"] - interval["low"])

    assert widths(1) == pytest.approx(0.6)
    assert widths(50) == pytest.approx(0.6)


def test_parts_of_an_additive_model_are_scored_as_the_model_does() -> None:
    model, features = _model(), _features(60)
    scores = SubsetScores(model, features)
    assert scores.is_additive
    rng = np.random.default_rng(3)
    for size in (1, 2, 17, 60):
        kept = rng.permutation(60)[:size]
        np.testing.assert_allclose(scores(kept), softmax(_plainly(model, features[kept])[0]), atol=1e-5)


class _Spread(nn.Module):
    """A model whose slide logits are no mean of tile logits: it looks at the spread of the bag."""

    def forward(self, bags: Tensor, mask: Tensor) -> ModelOutput:
        spread = bags.var(1, correction=0).sum(-1)
        return ModelOutput(torch.stack([spread, -spread], 1), bags[..., 0])


def test_other_models_are_run_on_each_part() -> None:
    model, features = _Spread(), _features(30)
    scores = SubsetScores(model, features)
    assert not scores.is_additive
    kept = np.arange(7)
    np.testing.assert_allclose(scores(kept), softmax(_plainly(model, features[kept])[0]), atol=1e-6)
    said, curves = follow_attention(scores, n_steps=4, n_random=2, rng=np.random.default_rng(0))
    assert said == 0
    assert curves["deletion"][0] == pytest.approx(scores(np.arange(30))[0])


def test_attention_that_outweighs_the_rest_by_far_leaves_no_hole() -> None:
    model, features = _model(), _features(20)
    model.attention_w.weight.data *= 500
    scores = SubsetScores(model, features)
    low = np.argsort(scores.raw_attention)[:3]
    assert np.isfinite(scores(low)).all()
    np.testing.assert_allclose(scores(low), softmax(_plainly(model, features[low])[0]), atol=1e-4)


def _attention(slide_id: str, weights: list[float]) -> SlideAttention:
    coords = np.stack([np.arange(len(weights)), np.arange(len(weights)) * 10], 1)
    return SlideAttention(slide_id, 0, 0.5, np.array(weights, np.float32), coords, (8, 8))


def test_top_tiles_by_hand() -> None:
    """Three slides of four tiles; tiles below an even share of attention do not count, two of a slide at most."""
    top = TopTiles(["no", "yes"], 3)
    even = [0.25] * 4
    for name, weights, yes in (
        ("a", even, [0.9, 0.95, 0.97, 0.1]),
        ("b", even, [0.2, 0.3, 0.4, 0.5]),
        ("c", [0.5, 0.5, 0.0, 0.0], [0.6, 0.7, 1.0, 0.0]),
    ):
        top.add(_attention(name, weights), "yes", np.stack([1 - np.array(yes), np.array(yes)], 1))
    rows = [tile.row() for tile in top.tiles()]
    found: dict[tuple[object, object], list[tuple[object, ...]]] = {}
    for row in rows:
        found.setdefault((row["class"], row["end"]), []).append((row["slide_id"], row["y"], row["rank"]))
    assert found["yes", "top"] == [("a", 20, 1), ("a", 10, 2), ("c", 10, 3)]
    assert found["yes", "bottom"] == [("a", 30, 1), ("b", 0, 2), ("b", 10, 3)]
    assert found["no", "top"] == found["yes", "bottom"]
    assert found["no", "bottom"] == found["yes", "top"]
    assert {row["width"] for row in rows} == {8}


def test_top_tiles_do_not_depend_on_the_order_of_slides() -> None:
    rng = np.random.default_rng(0)
    slides = [(f"s{i}", rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(3), 30)) for i in range(20)]
    results = []
    for order in (slides, slides[::-1]):
        top = TopTiles(["a", "b", "c"], 5)
        for name, weights, probabilities in order:
            top.add(_attention(name, list(weights)), "a", np.round(probabilities, 1))
        results.append(top.tiles())
    assert results[0] == results[1]
    assert len(results[0]) == 30


def test_pictures_are_drawn_with_missing_tiles_and_hostile_names() -> None:
    pixels = np.full((8, 8, 3), 200, np.uint8)
    rows = [MosaicRow("most <b>$x$", [MosaicTile("0.9\n<script>", pixels), MosaicTile("_x", None)])]
    svg = mosaic_picture(rows, "top-tiles").svg
    assert "<script" not in svg
    assert "no picture" in svg
    worth = np.array([3.0, 1.0])
    curves = follow(worth, lambda kept: worth[kept].sum() / 4, n_steps=2, n_random=1, rng=np.random.default_rng(0))
    summary = summarise_curves([SlideCurves("s", "p", 0, "a", 2, curves)], n_random=1, n_resamples=100)
    assert "random order" in faithfulness_picture(summary, "faithfulness").svg
