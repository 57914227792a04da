"""Collections of feature files: one identity, no random weights, the same values from memory and disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_dino.errors import FeatureFileError
from wsi_dino.feature_file import FeatureFile, write_feature_file
from wsi_dino.mil.bags import BagStore

IDENTITY = {"encoder": "toy", "embed_dim": 6, "pooling": "mean", "input_px": 224, "weights_sha256": "abc"}


def _write(
    folder: Path, slide_id: str, n: int, dim: int = 6, features: np.ndarray | None = None, **changes: Any
) -> Path:
    path = folder / f"{slide_id}.h5"
    if features is None:
        features = np.random.default_rng(n).normal(size=(n, dim)).astype(np.float16)
    write_feature_file(path, FeatureFile(features, np.zeros((n, 2), np.int64), {**IDENTITY, **changes}))
    return path


def test_bags_are_the_same_from_memory_and_from_disk(tmp_path: Path) -> None:
    paths = {slide: _write(tmp_path, slide, n) for slide, n in (("a", 4), ("b", 9), ("c", 0))}
    kept, streamed = BagStore(paths), BagStore(paths, memory_bytes=0)
    assert (kept.in_memory, streamed.in_memory) == (True, False)
    for store in (kept, streamed):
        assert store.slide_ids == ("a", "b")
        assert store.empty == ("c",)
        assert store.n_tiles == {"a": 4, "b": 9, "c": 0}
        assert store.embed_dim == 6
    for slide in "ab":
        np.testing.assert_array_equal(kept.features(slide), streamed.features(slide))
    assert kept.features("a") is kept.features("a")
    assert streamed.features("a") is not streamed.features("a")


@pytest.mark.parametrize(
    "changes",
    [{"encoder": "other"}, {"pooling": "cls"}, {"weights_sha256": "xyz"}, {"stain_norm": "macenko"}, {"tiles": "x"}],
)
def test_features_of_two_settings_are_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    paths = {"a": _write(tmp_path, "a", 3), "b": _write(tmp_path, "b", 3, **changes)}
    with pytest.raises(FeatureFileError, match=next(iter(changes))):
        BagStore(paths)


def test_random_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    paths = {"a": _write(tmp_path, "a", 3, weights_sha256="random:0", random_weights=0)}
    with pytest.raises(FeatureFileError, match="random weights"):
        BagStore(paths)
    assert BagStore(paths, allow_random_weights=True).slide_ids == ("a",)


def test_values_that_are_not_finite_are_found(tmp_path: Path) -> None:
    features = np.ones((5, 6), np.float16)
    features[3, 2] = np.inf
    store = BagStore({"a": _write(tmp_path, "a", 5, features=features)})
    with pytest.raises(FeatureFileError, match="row 3"):
        store.features("a")


def test_missing_files_and_slides_are_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match="no feature file"):
        BagStore({})
    with pytest.raises(FeatureFileError, match=r"b\.h5"):
        BagStore({"a": _write(tmp_path, "a", 3), "b": tmp_path / "b.h5"})
    with pytest.raises(FeatureFileError, match="'z'"):
        BagStore({"a": _write(tmp_path, "a", 3)}).features("z")
