"""Attention on disk: the same again when read, the same bytes when written again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_dino.errors import FeatureFileError
from wsi_dino.mil.attention_file import SlideAttention, read_attention, write_attention


def _attention(n: int, tile_wh_level0: tuple[int, int] | None = (224, 112)) -> SlideAttention:
    weights = np.random.default_rng(0).dirichlet(np.ones(n)).astype(np.float32)
    return SlideAttention("Schnitt ö", 3, 0.25, weights, np.arange(2 * n).reshape(n, 2), tile_wh_level0)


@pytest.mark.parametrize("tile_wh_level0", [(224, 112), None])
def test_round_trip(tmp_path: Path, tile_wh_level0: tuple[int, int] | None) -> None:
    written = _attention(7, tile_wh_level0)
    write_attention(tmp_path / "a.h5", written)
    read = read_attention(tmp_path / "a.h5")
    np.testing.assert_array_equal(read.attention_weights, written.attention_weights)
    np.testing.assert_array_equal(read.coords, written.coords)
    assert (read.slide_id, read.fold, read.score) == ("Schnitt ö", 3, 0.25)
    assert read.tile_wh_level0 == tile_wh_level0


def test_same_attention_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_attention(tmp_path / name, _attention(50))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    for name in ("broken.h5", "gone.h5"):
        with pytest.raises(FeatureFileError, match=name):
            read_attention(tmp_path / name)


def test_evenness_is_one_for_even_and_zero_for_a_spike() -> None:
    even = SlideAttention("S", 0, 0.5, np.full(16, 1 / 16, np.float32), np.zeros((16, 2), int), None)
    spike = SlideAttention("S", 0, 0.5, np.eye(16, dtype=np.float32)[3], np.zeros((16, 2), int), None)
    assert even.evenness == pytest.approx(1.0)
    assert spike.evenness == pytest.approx(0.0)
    assert spike.lift.max() == pytest.approx(16)
