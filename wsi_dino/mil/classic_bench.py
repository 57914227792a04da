"""The classic MIL sets by the protocol of the attention paper: five times ten-fold cross-validation.

They are public, small and twenty years old, so that anybody can see in minutes whether the attention
here learns what it should. Published: Ilse, Tomczak and Welling, "Attention-based Deep Multiple
Instance Learning", ICML 2018, Table 1.
"""

from __future__ import annotations

import multiprocessing
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError
from wsi_dino.mil.classic_network import ClassicNetwork, ClassicSpec

# (mean accuracy, its standard error)
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "musk1": {"abmil": (0.892, 0.040), "gated-abmil": (0.900, 0.050)},
    "musk2": {"abmil": (0.858, 0.048), "gated-abmil": (0.863, 0.042)},
    "fox": {"abmil": (0.615, 0.043), "gated-abmil": (0.603, 0.029)},
    "tiger": {"abmil": (0.839, 0.022), "gated-abmil": (0.845, 0.018)},
    "elephant": {"abmil": (0.868, 0.022), "gated-abmil": (0.857, 0.027)},
}
MODELS = ("abmil", "gated-abmil")
_ARRAYS = ("X", "bag", "bag_label")


@dataclass(frozen=True)
class ClassicSet:
    """Bags of one set.

    Attributes:
        name: of its file, without ``.npz``.
        bags: float32 ``(n, dim)`` each.
        labels: int64 ``(n_bags,)``, 0 or 1.
    """

    name: str
    bags: tuple[np.ndarray, ...]
    labels: np.ndarray

    def standardised(self, train: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the bags with mean 0 and deviation 1 in each value over the instances of the bags `train`."""
        instances = np.concatenate([self.bags[index] for index in train]).astype(np.float64)
        std = instances.std(0)
        factor = np.where(std > 0, 1 / np.where(std > 0, std, 1), 0)
        return tuple(((bag - instances.mean(0)) * factor).astype(np.float32) for bag in self.bags)


@dataclass(frozen=True)
class ClassicProtocol:
    """What is repeated how often.

    Attributes:
        repeats, folds: of the stratified cross-validation.
        spec: network and training; its `gated` is set by the model.
        seed: of folds, weights, order and dropout.
    """

    repeats: int = 5
    folds: int = 10
    spec: ClassicSpec = field(default_factory=ClassicSpec)
    seed: int = 0


def read_classic_set(path: Path) -> ClassicSet:
    """Read a ``.npz`` with ``X`` (n_instances, dim), ``bag`` (n_instances,) and ``bag_label`` (n_bags,).

    Bag ids are any integers; labels go by their ascending order. Nothing in the file is executed.

    Raises:
        ConfigError: the file is broken, an array is missing or of another length, or a label is not 0 or 1.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _ARRAYS if name not in file]
            if missing:
                raise ConfigError(
                    f"Reading {path}: expected arrays {', '.join(_ARRAYS)}, {', '.join(missing)} is missing."
                )
            instances, owner, labels = (np.asarray(file[name]) for name in _ARRAYS)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(f"Reading {path}: broken or no .npz file ({error}).") from error
    _check(path, instances, owner, labels)
    order = np.unique(owner)
    bags = tuple(np.ascontiguousarray(instances[owner == bag], dtype=np.float32) for bag in order)
    return ClassicSet(path.stem, bags, labels.astype(np.int64))


def _check(path: Path, instances: np.ndarray, owner: np.ndarray, labels: np.ndarray) -> None:
    n_bags = len(np.unique(owner))
    if instances.ndim != 2 or owner.shape != instances.shape[:1]:
        raise ConfigError(
            f"Reading {path}: expected X (n_instances, dim) and bag (n_instances,), got {instances.shape} and "
            f"{owner.shape}."
        )
    if labels.shape != (n_bags,):
        raise ConfigError(f"Reading {path}: {n_bags} bags, so bag_label must be ({n_bags},); got {labels.shape}.")
    if not np.isin(labels, (0, 1)).all() or len(np.unique(labels)) < 2:
        raise ConfigError(f"Reading {path}: bag_label must hold 0 and 1, got {np.unique(labels)[:5].tolist()}.")
    if not np.isfinite(instances).all():
        raise ConfigError(f"Reading {path}: X holds a value that is not finite.")


def find_classic_sets(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the ``.npz`` files of a folder, or those of `names`.

    Raises:
        ConfigError: there is none, or not one of that name.
    """
    if not folder.is_dir():
        raise ConfigError(f"Looking for MIL sets: {folder} is not a folder.")
    paths = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not paths:
        raise ConfigError(f"Looking for MIL sets in {folder}: no .npz file. Each holds {', '.join(_ARRAYS)}.")
    unknown = [name for name in names if name not in paths]
    if unknown:
        raise ConfigError(f"Looking for MIL sets in {folder}: no {unknown[0]}.npz. There are {', '.join(paths)}.")
    return [paths[name] for name in (names or paths)]


def deal_folds(labels: np.ndarray, protocol: ClassicProtocol) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Yield (repeat, fold, train, test): indices of bags; each repeat tests every bag once."""
    from sklearn.model_selection import StratifiedKFold

    for repeat in range(protocol.repeats):
        dealer = StratifiedKFold(protocol.folds, shuffle=True, random_state=protocol.seed + repeat)
        for fold, (train, test) in enumerate(dealer.split(np.zeros(len(labels)), labels)):
            yield repeat, fold, train, test


def fold_accuracy(bags: ClassicSet, model: str, protocol: ClassicProtocol, repeat: int, fold: int) -> float:
    """Train on one fold and return the share of its test bags on the right side of one half."""
    from threadpoolctl import threadpool_limits

    train, test = next((tr, te) for r, f, tr, te in deal_folds(bags.labels, protocol) if (r, f) == (repeat, fold))
    instances = bags.standardised(train)
    spec = protocol.spec.model_copy(update={"gated": model == "gated-abmil"})
    random = np.random.default_rng([protocol.seed, repeat, fold, MODELS.index(model)])
    network = ClassicNetwork(instances[0].shape[1], spec, random)
    with threadpool_limits(1):
        network.fit([instances[index] for index in train], bags.labels[train])
        right = [(network.logit(instances[index]) > 0) == bags.labels[index] for index in test]
    return float(np.mean(right))


def run_classic_bench(
    paths: Sequence[Path], protocol: ClassicProtocol, *, workers: int = 0,
    report: Callable[..., None] = lambda *_, **__: None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Run both attentions on all sets, folds side by side in processes; the result does not depend on their number.

    Returns:
        For each set and model ``mean``, ``se``, ``folds`` (accuracy of each, ``(repeats, folds)``),
        ``published`` (mean, se) or None, and ``combined_se_off``: how many combined standard errors the
        published mean lies away.

    Raises:
        ConfigError: a file cannot be used, or a class has fewer bags than there are folds.
    """
    sets = [read_classic_set(path) for path in paths]
    for bags in sets:
        if np.bincount(bags.labels).min() < protocol.folds:
            raise ConfigError(
                f"Cross-validating {bags.name}: {np.bincount(bags.labels).min()} bags of a class are fewer than "
                f"{protocol.folds} folds."
            )
    accuracies = {(b.name, m): np.zeros((protocol.repeats, protocol.folds)) for b in sets for m in MODELS}
    jobs = [
        (bags, model, repeat, fold)
        for bags in sets
        for model in MODELS
        for repeat in range(protocol.repeats)
        for fold in range(protocol.folds)
    ]
    report(0, total=len(jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or multiprocessing.cpu_count(), mp_context=context) as pool:
        futures = {pool.submit(fold_accuracy, b, m, protocol, r, f): (b.name, m, r, f) for b, m, r, f in jobs}
        try:
            for future in as_completed(futures):
                name, model, repeat, fold = futures[future]
                accuracies[name, model][repeat, fold] = future.result()
                report(1, text=f"{name} {model}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {
        bags.name: {model: _summary(bags.name, model, accuracies[bags.name, model]) for model in MODELS}
        for bags in sets
    }


def standard_error(accuracies: np.ndarray) -> float:
    """Return the standard error of a mean over folds, averaged over the repeats ``(repeats, folds)``.

    The repeats deal the same bags anew: dividing by the root of all folds of all repeats would make the
    error smaller the more often one repeats, as if there were more bags.

    Examples:
        >>> round(standard_error(np.array([[1.0, 0.8], [1.0, 0.8]])), 3)
        0.1
    """
    if accuracies.shape[1] < 2:
        return float("nan")
    return float(np.mean(accuracies.std(axis=1, ddof=1)) / np.sqrt(accuracies.shape[1]))


def _summary(name: str, model: str, accuracies: np.ndarray) -> dict[str, Any]:
    mean, error = float(accuracies.mean()), standard_error(accuracies)
    published = PUBLISHED.get(name.lower(), {}).get(model)
    off = abs(mean - published[0]) / float(np.hypot(error, published[1])) if published else None
    return {
        "mean": mean,
        "se": error,
        "published": {"mean": published[0], "se": published[1]} if published else None,
        "combined_se_off": off,
        "folds": accuracies.tolist(),
    }
