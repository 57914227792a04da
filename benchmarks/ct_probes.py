"""Probes at the size of CT-RATE: 47,000 training and 3,000 test vectors of 1,024 numbers, 18 labels.

Each probe runs in a process of its own, of which time and peak resident set are printed; k-NN beside scikit-learn and,
where it is installed, faiss, with the share of neighbours on which they agree.
Run: python benchmarks/ct_probes.py [--n 47000] [--dim 1024]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

_LABELS, _TEST, _K = 18, 3000, 200
_WHICH = ("data", "linear", "logistic", "knn", "knn-sklearn", "knn-faiss")


def main() -> None:
    """Print one line a probe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=47_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--one", choices=_WHICH, help="run this one here")
    arguments = parser.parse_args()
    if arguments.one:
        _one(arguments.one, arguments.n, arguments.dim)
        return
    print(f"{arguments.n} x {arguments.dim}, {_LABELS} labels, {_TEST} test vectors", flush=True)
    for which in _WHICH:
        command = [sys.executable, __file__, "--one", which, "--n", str(arguments.n), "--dim", str(arguments.dim)]
        subprocess.run(command, check=False)


def _one(which: str, n: int, dim: int) -> None:
    train, labels, test, truth = _data(n, dim)
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        told = _run(which, train, labels, test, truth)
    except ImportError as error:
        print(f"{which:<12} not installed ({error.name})", flush=True)
        return
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{which:<12}{seconds:>8.1f} s {cpu_s:>8.1f} s of CPU {peak:>8.0f} MiB  {told}", flush=True)


def _data(n: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    targets = (random.random((n + _TEST, _LABELS)) < 0.18).astype(np.float64)
    directions = random.normal(size=(_LABELS, dim)).astype(np.float32)
    features = random.standard_normal((n + _TEST, dim), dtype=np.float32)
    features += targets.astype(np.float32) @ directions * np.float32(0.05)
    return features[:n], targets[:n], features[n:], targets[n:]


def _run(which: str, train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> str:
    from wsi_dino.evaluation.knn import choose_setting, knn_scores, mean_auc, nearest_neighbours
    from wsi_dino.evaluation.linear_probe import LinearProbeSpec, LogisticSpec, fit_linear_probe, fit_logistic

    cut = len(train) * 9 // 10
    if which == "linear":
        return f"AUC {mean_auc(truth, fit_linear_probe(train, labels, LinearProbeSpec()).scores(test)):.4f}"
    if which == "logistic":
        model = fit_logistic(train[:cut], labels[:cut], train[cut:], labels[cut:], LogisticSpec())
        return f"AUC {mean_auc(truth, model.scores(test)):.4f}"
    if which == "knn":
        choice = choose_setting(train[:cut], labels[:cut], train[cut:], labels[cut:], weightings=("uniform", "softmax"))
        scores = knn_scores(train[:cut], labels[:cut], test, choice.setting)
        return f"AUC {mean_auc(truth, scores):.4f}, k {choice.setting.k} chosen on {len(train) - cut} vectors"
    if which == "data":
        return "(only made)"
    found = _by_sklearn(train, test) if which == "knn-sklearn" else _by_faiss(train, test)
    ours = nearest_neighbours(train, test[:200], _K)
    same = np.mean([len(set(a) & set(b)) / _K for a, b in zip(ours.index, found[:200], strict=True)])
    return f"search alone, {_K} neighbours; {same:.4%} of them are ours"


def _by_sklearn(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=_K, metric="cosine", algorithm="brute").fit(train)
    return np.asarray(index.kneighbors(test, return_distance=False))


def _by_faiss(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatIP(train.shape[1])
    unit = [np.ascontiguousarray(part / np.linalg.norm(part, axis=1, keepdims=True)) for part in (train, test)]
    index.add(unit[0])
    return np.asarray(index.search(unit[1], _K)[1])


if __name__ == "__main__":
    main()
