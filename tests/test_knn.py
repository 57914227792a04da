"""The exact search and the votes, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation import knn
from wsi_dino.evaluation.knn import KnnSetting, choose_setting, knn_scores, nearest_neighbours, vote


def _clusters(n: int, dim: int, n_labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random((n, n_labels)) < 0.2).astype(float)
    directions = np.random.default_rng(99).normal(size=(n_labels, dim))
    return (labels @ directions + 2 * random.normal(size=(n, dim))).astype(np.float32), labels


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    bank, labels = _clusters(5000, 384, 18)
    queries, _ = _clusters(300, 384, 18, seed=1)
    return bank, labels, queries


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("weighting", ["uniform", "distance"])
def test_votes_equal_scikit_learn_on_5000_by_384(large: tuple, metric: str, weighting: str) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    bank, labels, queries = large
    reference = KNeighborsClassifier(25, weights=weighting, metric=metric, algorithm="brute").fit(bank, labels)
    expected = np.stack([each[:, 1] for each in reference.predict_proba(queries)], axis=1)
    ours = knn_scores(bank, labels, queries, KnnSetting(25, metric, weighting))  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_softmax_votes_equal_those_written_out(large: tuple) -> None:
    bank, labels, queries = (part[:200] for part in large)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (bank.astype(float), queries.astype(float))]
    for query, score in zip(
        unit[1], knn_scores(bank, labels, queries, KnnSetting(20, "cosine", "softmax")), strict=True
    ):
        similarity = unit[0] @ query
        nearest = np.argsort(-similarity)[:20]
        weights = np.exp(similarity[nearest] / 0.07)
        np.testing.assert_allclose(score, weights @ labels[nearest] / weights.sum(), atol=1e-4)


def test_blocks_change_nothing(large: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, _, queries = large
    whole = nearest_neighbours(bank, queries, 7)
    monkeypatch.setattr(knn, "_BLOCK_BYTES", 4 * len(bank) * 13)
    parts = nearest_neighbours(bank, queries, 7)
    assert (whole.index == parts.index).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 30), st.sampled_from(["cosine", "euclidean"]), st.integers(0, 999))
def test_distances_ascend_and_scores_are_shares(k: int, n: int, metric: knn.Metric, seed: int) -> None:
    random = np.random.default_rng(seed)
    bank, labels = random.integers(0, 3, (n, 4)).astype(float), random.integers(0, 2, (n, 2)).astype(float)
    found = nearest_neighbours(bank, bank, k, metric)
    assert found.index.shape == (n, min(k, n))
    assert (np.diff(found.distance, axis=1) >= 0).all()
    assert all(len(set(row)) == len(row) for row in found.index)
    for weighting in ("uniform", "distance", "softmax"):
        scores = vote(found, labels, weighting)
        assert ((scores >= 0) & (scores <= 1)).all()


def test_one_neighbour_of_the_bank_itself_is_itself() -> None:
    bank, labels = _clusters(200, 16, 3)
    assert (knn_scores(bank, labels, bank, KnnSetting(1)) == labels).all()


def test_a_neighbour_that_does_not_know_a_label_does_not_vote() -> None:
    bank = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    labels = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0]])
    scores = knn_scores(bank, labels, np.array([[1.0, 0.0]]), KnnSetting(2))
    assert scores.tolist() == [[1.0, 1.0]]  # of the second label only the bank's share is known


def test_the_planted_k_is_found_on_validation() -> None:
    """Clusters of 12 with one label each: more neighbours than that only bring strangers."""
    random = np.random.default_rng(5)
    centres, label = random.normal(size=(40, 8)), random.integers(0, 2, 40)
    train = np.repeat(centres, 12, 0) + 0.01 * random.normal(size=(480, 8))
    noisy = np.where(random.random(480) < 0.3, 1 - np.repeat(label, 12), np.repeat(label, 12))
    val = np.repeat(centres, 3, 0) + 0.01 * random.normal(size=(120, 8))
    choice = choose_setting(train, noisy[:, None].astype(float), val, np.repeat(label, 3)[:, None].astype(float),
                            ks=(1, 12, 200))  # fmt: skip
    assert choice.setting.k == 12
    assert {row["k"] for row in choice.table} == {1, 12, 200}


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="cosine"):
        KnnSetting(5, "cosin")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        KnnSetting(0)
