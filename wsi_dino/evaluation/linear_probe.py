"""Linear models on frozen features, for all labels at once: the paper's probe, and logistic regression beside it.

The paper says: one linear layer, binary cross-entropy, learning rate 0.005, batches of 1024, 50 epochs
(arXiv 2509.06467v1, section 3.2). It does not say which optimiser, schedule and weight decay, nor whether features
are standardised; these are settings of `LinearProbeSpec`, with defaults that are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.errors import ConfigError

_MIN_STD = 1e-6
_ROWS_AT_ONCE = 16_384
_SMALL_PRODUCTS = 50_000_000
_PATIENCE = 2  # strengths in a row that are worse on validation end the path


class LinearProbeSpec(BaseModel):
    """The paper's probe.

    Attributes:
        optimiser: of torch; the paper names none.
        learning_rate, batch_size, n_epochs: the paper's.
        weight_decay: L2 for ``sgd`` and ``adam``, decoupled for ``adamw``; the paper names none.
        schedule: ``constant``, or ``cosine`` down to 0 over all steps.
        standardise: bring each feature to mean 0 and deviation 1 of the training images.
        initial_bias: ``prior`` starts each label at its share of the training images, ``zero`` at one half. With few
            images there are few steps, and from one half scores would stay near it. Weights start at 0.
        seed: of the order of the images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=0.005, gt=0)
    batch_size: int = Field(default=1024, ge=1)
    n_epochs: int = Field(default=50, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    standardise: bool = True
    initial_bias: Literal["prior", "zero"] = "prior"
    seed: int = 0


class LogisticSpec(BaseModel):
    """Logistic regression with an L2 penalty by L-BFGS, its strength chosen on validation.

    Attributes:
        c_values: inverse strengths, as scikit-learn's ``C``, tried from the least; that of the least validation loss is
            taken for all labels, and two in a row that are worse end the search.
        max_iterations: of L-BFGS for each strength; each starts from the last.
        standardise: as of `LinearProbeSpec`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    c_values: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    max_iterations: int = Field(default=200, ge=1)
    standardise: bool = True


@dataclass(frozen=True)
class LinearModel:
    """``sigmoid(((x - mean) / std) @ weight + bias)`` for every label.

    Attributes:
        weight: float32 ``(embed_dim, n_labels)``, of standardised features.
        bias: float32 ``(n_labels,)``.
        mean, std: float32 ``(embed_dim,)`` of the training images.
        facts: how it was made, JSON-able.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    facts: dict[str, Any]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities float64 ``(n, n_labels)`` for features ``(n, embed_dim)``."""
        weight = self.weight / self.std[:, None]
        bias = self.bias - self.mean @ weight
        parts = [
            np.asarray(features[at : at + _ROWS_AT_ONCE], np.float32) @ weight + bias
            for at in range(0, len(features), _ROWS_AT_ONCE)
        ]
        logits = np.concatenate(parts).astype(np.float64) if parts else np.empty((0, len(bias)))
        return np.asarray(_sigmoid(logits))


def fit_linear_probe(features: np.ndarray, targets: np.ndarray, spec: LinearProbeSpec) -> LinearModel:
    """Train the paper's probe; the same input gives the same weights on one machine.

    Args:
        features: float ``(n, embed_dim)`` of the training images.
        targets: float ``(n, n_labels)`` of 0, 1 and NaN; an unknown cell adds nothing to the loss.
        spec: the settings.

    Raises:
        ConfigError: shapes do not fit, a feature is not finite, or a target is none of 0, 1 and NaN.
    """
    import torch

    features, targets = _checked(features, targets)
    mean, std = _moments(features, spec.standardise)
    centre, scale = torch.from_numpy(mean), torch.from_numpy(std)
    x, y = torch.from_numpy(features), torch.from_numpy(np.nan_to_num(targets))
    known = torch.from_numpy((~np.isnan(targets)).astype(np.float32))
    weight = torch.zeros(features.shape[1], targets.shape[1], requires_grad=True)
    bias = torch.from_numpy(_first_bias(targets, spec)).requires_grad_()
    step, losses = _stepper([weight, bias], spec, len(x)), []
    random = torch.Generator().manual_seed(spec.seed)
    for _ in range(spec.n_epochs):
        total = 0.0
        order = torch.randperm(len(x), generator=random)
        for at in range(0, len(x), spec.batch_size):
            rows = order[at : at + spec.batch_size]
            logits = (x[rows] - centre) / scale @ weight + bias
            cells = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, y[rows], weight=known[rows], reduction="sum"
            )
            step(cells / known[rows].sum().clamp(min=1))
            total += float(cells.detach())
        losses.append(total / max(float(known.sum()), 1.0))
    facts = {"model": "linear probe", **spec.model_dump(), "train_loss_first": losses[0], "train_loss_last": losses[-1]}
    return LinearModel(weight.detach().numpy(), bias.detach().numpy(), mean, std, facts)


def _first_bias(targets: np.ndarray, spec: LinearProbeSpec) -> np.ndarray:
    """Return float32 ``(n_labels,)``: the log odds of each label among known cells, as of one image more of each."""
    if spec.initial_bias == "zero":
        return np.zeros(targets.shape[1], np.float32)
    n_positive, n_negative = ((targets == value).sum(0) + 1 for value in (1, 0))
    return np.log(n_positive / n_negative).astype(np.float32)


def _stepper(parameters: list[Any], spec: LinearProbeSpec, n: int) -> Any:
    """Return what takes one step down a loss."""
    import torch

    settings: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[spec.optimiser]
    optimiser: Any = make(parameters, **settings, **({"momentum": 0.9} if spec.optimiser == "sgd" else {}))
    n_steps = spec.n_epochs * -(-n // spec.batch_size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps) if spec.schedule == "cosine" else None

    def step(loss: Any) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if cosine is not None:
            cosine.step()

    return step


def fit_logistic(
    features: np.ndarray,
    targets: np.ndarray,
    val_features: np.ndarray,
    val_targets: np.ndarray,
    spec: LogisticSpec,
) -> LinearModel:
    """Fit L2-penalised logistic regression to all labels at once, from the strongest penalty to the weakest.

    The penalty leaves the bias alone, as scikit-learn's ``LogisticRegression(C=...)``; labels do not touch each
    other, so that each column is what a fit of that label alone gives.

    Args:
        features: float ``(n, embed_dim)`` of the training images.
        targets: float ``(n, n_labels)`` of 0, 1 and NaN, theirs.
        val_features: of the images that choose ``C`` by their mean log loss.
        val_targets: theirs.
        spec: the settings.

    Raises:
        ConfigError: as for `fit_linear_probe`.
    """
    features, targets = _checked(features, targets)
    val_features, val_targets = _checked(val_features, val_targets)
    mean, std = _moments(features, spec.standardise)
    x = (features - mean) / std
    weights, best, losses = np.zeros((x.shape[1] + 1, targets.shape[1])), None, {}
    with _few_threads(x.size * targets.shape[1]):
        for c in sorted(spec.c_values):
            weights = _minimum(x, targets, weights, c, spec.max_iterations)
            model = LinearModel(weights[:-1].astype(np.float32), weights[-1].astype(np.float32), mean, std, {})
            losses[c] = _log_loss(val_targets, model.scores(val_features))
            if best is None or losses[c] < losses[best[0]]:
                best = (c, model)
            if _has_risen(list(losses.values())):
                break
    assert best is not None
    facts = {"model": "logistic regression, L-BFGS", "c": best[0], "val_losses": {f"{c:g}": losses[c] for c in losses}}
    chosen = best[1]
    return LinearModel(chosen.weight, chosen.bias, mean, std, facts | {"standardise": spec.standardise})


def _has_risen(losses: list[float]) -> bool:
    """Tell whether the last `_PATIENCE` losses were each greater than the one before: weaker penalties overfit more."""
    last = losses[-_PATIENCE - 1 :]
    return len(last) > _PATIENCE and all(a < b for a, b in pairwise(last))


@contextmanager
def _few_threads(n_products: int) -> Iterator[None]:
    """Keep small products on one thread: handing them round costs more than they do, on a busy machine much more."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1 if n_products < _SMALL_PRODUCTS else None):
        yield


def _minimum(x: np.ndarray, targets: np.ndarray, start: np.ndarray, c: float, max_iterations: int) -> np.ndarray:
    from scipy.optimize import minimize

    known, y = ~np.isnan(targets), np.nan_to_num(targets)
    strength, shape = 1 / (c * len(x)), start.shape

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logits = (x @ weights[:-1].astype(np.float32)).astype(np.float64) + weights[-1]
        loss = np.where(known, np.logaddexp(0, logits) - y * logits, 0).sum() / len(x)
        residual = np.where(known, _sigmoid(logits) - y, 0) / len(x)
        gradient = np.empty(shape)
        gradient[:-1] = (x.T @ residual.astype(np.float32)) + strength * weights[:-1]
        gradient[-1] = residual.sum(0)
        return float(loss + 0.5 * strength * (weights[:-1] ** 2).sum()), gradient.ravel()

    options = {"maxiter": max_iterations, "maxcor": 10, "ftol": 1e-10, "gtol": 1e-6}
    found = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x).reshape(shape)


def _log_loss(targets: np.ndarray, scores: np.ndarray) -> float:
    safe = np.clip(scores, 1e-12, 1 - 1e-12)
    return float(np.nanmean(-(targets * np.log(safe) + (1 - targets) * np.log(1 - safe))))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(logits))


def _moments(features: np.ndarray, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation, float32; a feature that never changes is left at its scale."""
    width = features.shape[1]
    if not standardise:
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    mean = features.mean(0, dtype=np.float64)
    squares = np.zeros(width)
    for at in range(0, len(features), _ROWS_AT_ONCE):
        squares += ((features[at : at + _ROWS_AT_ONCE] - mean) ** 2).sum(0)
    std = np.sqrt(squares / len(features))
    return mean.astype(np.float32), np.where(std > _MIN_STD, std, 1.0).astype(np.float32)


def _checked(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, targets = np.asarray(features, np.float32), np.asarray(targets, np.float32)
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets) or not len(features):
        shapes = f"{features.shape} and {targets.shape}"
        raise ConfigError(f"Fitting a probe: expected features (n, embed_dim) and targets (n, n_labels), got {shapes}.")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise ConfigError(f"Fitting a probe: features of row {row} hold NaN or infinity.")
    if not np.isin(targets[~np.isnan(targets)], (0, 1)).all():
        raise ConfigError("Fitting a probe: targets must be 0, 1 or NaN (unknown).")
    return features, targets
