"""k nearest neighbours for several labels at once: an exact search, then votes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from wsi_dino.errors import ConfigError, nearest_name

Metric = Literal["cosine", "euclidean"]
Weighting = Literal["uniform", "distance", "softmax"]
KS = (5, 10, 20, 50, 100, 200)
_BLOCK_BYTES = 64 * 2**20
_TEMPERATURE = 0.07


@dataclass(frozen=True)
class KnnSetting:
    """One way of voting.

    Attributes:
        k: neighbours that vote.
        metric: ``cosine`` or ``euclidean``.
        weighting: ``uniform``; ``distance``, one over the distance (scikit-learn's), where a neighbour at distance 0
            outvotes all others; ``softmax``, ``exp(similarity / 0.07)`` as in DINO (euclidean: of minus the
            distance over the median distance of the nearest).
    """

    k: int = 20
    metric: Metric = "cosine"
    weighting: Weighting = "uniform"

    def __post_init__(self) -> None:
        for name, value, known in (("metric", self.metric, get_args(Metric)),
                                   ("weighting", self.weighting, get_args(Weighting))):  # fmt: skip
            if value not in known:
                near = nearest_name(value, known)
                raise ConfigError(f"k-NN: no {name} {value!r}.{near} Known: {', '.join(known)}.")
        if self.k < 1:
            raise ConfigError(f"k-NN: k must be at least 1, got {self.k}.")


@dataclass(frozen=True)
class Neighbours:
    """The nearest of a bank for each query, nearest first; equally near ones in the order of the bank.

    Attributes:
        index: int64 ``(n_queries, k)`` into the bank.
        distance: float32 ``(n_queries, k)``: euclidean, or 1 - cosine.
        metric: of the distance.
    """

    index: np.ndarray
    distance: np.ndarray
    metric: Metric

    def first(self, k: int) -> Neighbours:
        """Return the nearest `k` only."""
        return Neighbours(self.index[:, :k], self.distance[:, :k], self.metric)


def nearest_neighbours(bank: np.ndarray, queries: np.ndarray, k: int, metric: Metric = "cosine") -> Neighbours:
    """Search exactly, a block of queries at a time: 64 MB beside bank and queries, whatever their number.

    Args:
        bank: ``(n, embed_dim)``.
        queries: ``(n_queries, embed_dim)``.
        k: at most `n` are returned.
        metric: ``cosine`` (a vector of length 0 is as far from all as any) or ``euclidean``.

    Examples:
        >>> found = nearest_neighbours(np.eye(3), np.array([[1.0, 0.2, 0.0]]), 2)
        >>> found.index.tolist()
        [[0, 1]]
    """
    k = min(k, len(bank))
    bank, queries = _prepared(bank, metric), _prepared(queries, metric)
    squares = np.einsum("ij,ij->i", bank, bank)
    index = np.empty((len(queries), k), np.int64)
    distance = np.empty((len(queries), k), np.float32)
    for rows in _blocks(len(queries), len(bank)):
        # less the query's own square, by which the order of the bank does not change
        keys = squares - 2 * (queries[rows] @ bank.T) if metric == "euclidean" else -(queries[rows] @ bank.T)
        index[rows] = _smallest(keys, k)
        distance[rows] = _distances(bank, queries[rows], index[rows], metric)
    order = np.lexsort((index, distance), axis=-1)
    return Neighbours(np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1), metric)


def _prepared(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, np.float32)
    if metric == "euclidean":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _blocks(n_queries: int, n_bank: int) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // (4 * max(1, n_bank)))
    return (slice(start, start + size) for start in range(0, n_queries, size))


def _smallest(keys: np.ndarray, k: int) -> np.ndarray:
    if k == keys.shape[1]:
        return np.broadcast_to(np.arange(k), (len(keys), k))
    return np.argpartition(keys, k - 1, axis=1)[:, :k]


def _distances(bank: np.ndarray, queries: np.ndarray, index: np.ndarray, metric: Metric) -> np.ndarray:
    """Return distances of chosen pairs without the cancellation that the search's shortcut suffers from."""
    result = np.empty(index.shape, np.float32)
    for row, (query, nearest) in enumerate(zip(queries, index, strict=True)):
        difference = bank[nearest] - query
        squared = np.einsum("ij,ij->i", difference, difference)
        result[row] = np.sqrt(squared) if metric == "euclidean" else squared / 2  # of unit vectors: 1 - cosine
    return result


def vote(neighbours: Neighbours, labels: np.ndarray, weighting: Weighting = "uniform") -> np.ndarray:
    """Return for each query and label the share of votes for it: ``sum(w y) / sum(w)`` over the neighbours.

    Args:
        neighbours: of the queries.
        labels: float ``(n, n_labels)`` of the bank, 0 and 1; an unknown one (NaN) has no vote.
        weighting: see `KnnSetting`.

    Returns:
        float64 ``(n_queries, n_labels)`` in 0..1; where no neighbour knows the label, its share in the bank.
    """
    labels = np.asarray(labels, np.float64)
    known = ~np.isnan(labels)
    filled = np.where(known, labels, 0)
    prior = filled.sum(0) / np.maximum(known.sum(0), 1)
    weights = _weights(neighbours, weighting)
    scores = np.empty((len(neighbours.index), labels.shape[1]))
    for rows in _blocks(len(scores), neighbours.index.shape[1] * labels.shape[1]):
        votes = np.einsum("qk,qkl->ql", weights[rows], filled[neighbours.index[rows]])
        voters = np.einsum("qk,qkl->ql", weights[rows], known[neighbours.index[rows]].astype(np.float64))
        scores[rows] = np.where(voters > 0, votes / np.where(voters > 0, voters, 1), prior)
    return np.clip(scores, 0, 1)


def _weights(neighbours: Neighbours, weighting: Weighting) -> np.ndarray:
    distance = neighbours.distance.astype(np.float64)
    if weighting == "uniform":
        return np.ones_like(distance)
    if weighting == "distance":
        same = distance == 0
        with np.errstate(divide="ignore"):
            return np.where(same.any(1, keepdims=True), same, 1 / distance)
    scale = 1.0 if neighbours.metric == "cosine" else float(np.median(distance[:, 0])) or 1.0
    return np.exp((distance[:, :1] - distance) / (scale * _TEMPERATURE))


@dataclass(frozen=True)
class KnnChoice:
    """The setting that did best on validation, and what every one did.

    Attributes:
        setting: the best.
        table: a row a setting: ``k, metric, weighting, auc`` (mean over labels on validation).
    """

    setting: KnnSetting
    table: tuple[dict[str, float | int | str], ...]


def choose_setting(
    train: np.ndarray,
    train_labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    *,
    ks: Sequence[int] = KS,
    metrics: Sequence[Metric] = ("cosine",),
    weightings: Sequence[Weighting] = ("uniform",),
) -> KnnChoice:
    """Choose k, metric and weighting by the mean AUC over labels on validation; of equals, the first.

    One search a metric serves all of its settings. A `k` beyond the bank is taken as the bank's size, once.
    """
    table: list[dict[str, float | int | str]] = []
    best, best_auc = None, -math.inf
    for metric in metrics:
        found = nearest_neighbours(train, val, max(ks), metric)
        for k in dict.fromkeys(min(k, len(train)) for k in ks):
            for weighting in weightings:
                auc = mean_auc(val_labels, vote(found.first(k), train_labels, weighting))
                table.append({"k": k, "metric": metric, "weighting": weighting, "auc": auc})
                if best is None or auc > best_auc + 1e-12:
                    best, best_auc = KnnSetting(k, metric, weighting), auc
    if best is None:
        raise ConfigError("k-NN: there is no k, metric or weighting to choose from.")
    return KnnChoice(best, tuple(table))


def mean_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean AUC over the labels of which both classes are there; 0.5 where there is none."""
    from wsi_dino.evaluation.metrics import auc

    values = [auc(truth[known], score[known]) for truth, score in zip(np.asarray(labels).T, scores.T, strict=True)
              if (known := ~np.isnan(truth)).any()]  # fmt: skip
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else 0.5


def knn_scores(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, setting: KnnSetting) -> np.ndarray:
    """Return the votes for each query, float64 ``(n_queries, n_labels)``.

    Examples:
        >>> labels = np.array([[1.0], [0.0], [0.0]])
        >>> knn_scores(np.eye(3), labels, np.array([[1.0, 0.1, 0.0]]), KnnSetting(k=2)).tolist()
        [[0.5]]
    """
    return vote(nearest_neighbours(bank, queries, setting.k, setting.metric), labels, setting.weighting)
