"""Gated attention pooling over the vectors of an item, learnt with its labels. Imports torch inside.

The pooling and recipe are those of the MIL part (Ilse et al. 2018, equation 9; AdamW, cosine, the epoch with the best
validation loss), with one sigmoid a label. It stands here because rooms side by side do not import each other, and
reads its bags one after the other: the slices of a large cohort do not fit memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wsi_dino.errors import ConfigError

ReadBag = Callable[[int], np.ndarray]
_SCALE_BAGS = 64


class AttentionSpec(BaseModel):
    """How the probe is built and trained; the defaults are those of the MIL part.

    Attributes:
        hidden_dim, attention_dim, dropout: of the projection, of the gate, and of the projected vectors in training.
        learning_rate, weight_decay: of AdamW; the rate falls to zero by a cosine over `epochs`.
        epochs: at most; `min_epochs` before the first that may be kept; `patience` without a better validation loss.
        batch_bags: bags a step; small cohorts take fewer, so that an epoch has `min_steps`.
        seed: of weights, order and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_dim: int = Field(default=512, ge=1)
    attention_dim: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    epochs: int = Field(default=40, ge=1)
    min_epochs: int = Field(default=10, ge=0)
    patience: int = Field(default=15, ge=1)
    batch_bags: int = Field(default=8, ge=1)
    min_steps: int = Field(default=8, ge=1)
    seed: int = 0


class AttentionModel:
    """A trained probe.

    Attributes:
        network: of torch, in eval mode.
        facts: how it was made, JSON-able.
    """

    def __init__(self, network: Any, facts: dict[str, Any]) -> None:
        self.network, self.facts = network, facts

    def scores(self, read_bag: ReadBag, rows: Sequence[int]) -> np.ndarray:
        """Return probabilities float64 ``(n_rows, n_labels)``, one bag in memory at a time."""
        import torch

        with torch.inference_mode():
            logits = [self.network(torch.from_numpy(read_bag(int(row))))[0] for row in rows]
            return np.asarray(torch.sigmoid(torch.stack(logits)).double().numpy())

    def attention(self, bag: np.ndarray) -> np.ndarray:
        """Return the attention weights of one bag, float32 ``(n,)``, which sum to one."""
        import torch

        with torch.inference_mode():
            return np.asarray(self.network(torch.from_numpy(bag))[1].numpy())


def fit_attention_probe(
    read_bag: ReadBag,
    targets: np.ndarray,
    train: Sequence[int],
    val: Sequence[int],
    spec: AttentionSpec | None = None,
) -> AttentionModel:
    """Train on the bags of `train`, keep the epoch with the least loss on those of `val`.

    Args:
        read_bag: row number to float32 ``(n_vectors, embed_dim)``.
        targets: float ``(n, n_labels)`` of 0, 1 and NaN; an unknown cell adds nothing to the loss.
        train: row numbers to learn from.
        val: row numbers that choose the epoch.
        spec: the settings.

    Raises:
        ConfigError: nothing to train or validate on.
    """
    import torch

    spec = spec or AttentionSpec()
    if not len(train) or not len(val):
        raise ConfigError("Training attention pooling: it needs volumes to train and to validate on.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = _network(read_bag, train, targets.shape[1], spec)
        return _trained(network, read_bag, np.asarray(targets, np.float32), list(train), list(val), spec)


def _network(read_bag: ReadBag, train: Sequence[int], n_labels: int, spec: AttentionSpec) -> Any:
    import torch
    from torch import nn

    picked = [train[i * len(train) // _SCALE_BAGS] for i in range(min(_SCALE_BAGS, len(train)))]
    squares = [float(np.square(read_bag(int(row)), dtype=np.float64).mean()) for row in dict.fromkeys(picked)]
    scale = math.sqrt(float(np.mean(squares))) or 1.0

    class GatedAttention(nn.Module):
        """Attention-weighted mean of projected vectors, then one logit a label."""

        def __init__(self, embed_dim: int) -> None:
            super().__init__()
            self.projection = nn.Linear(embed_dim, spec.hidden_dim)
            self.attention_v = nn.Linear(spec.hidden_dim, spec.attention_dim, bias=False)
            self.attention_u = nn.Linear(spec.hidden_dim, spec.attention_dim, bias=False)
            self.attention_w = nn.Linear(spec.attention_dim, 1, bias=False)
            self.head = nn.Linear(spec.hidden_dim, n_labels)

        def forward(self, bag: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = nn.functional.dropout(self.projection(bag / scale), spec.dropout, self.training)
            gate = torch.tanh(self.attention_v(hidden)) * torch.sigmoid(self.attention_u(hidden))
            weights = torch.softmax(self.attention_w(gate)[:, 0], dim=0)
            return self.head(weights @ hidden), weights

    return GatedAttention(read_bag(int(train[0])).shape[1])


def _trained(
    network: Any, read_bag: ReadBag, targets: np.ndarray, train: list[int], val: list[int], spec: AttentionSpec
) -> AttentionModel:
    import torch

    optimiser = torch.optim.AdamW(network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, spec.epochs)
    batch = max(1, min(spec.batch_bags, len(train) // spec.min_steps))
    random = np.random.default_rng(spec.seed)
    best, best_loss, best_epoch, losses = None, math.inf, 0, []
    for epoch in range(spec.epochs):
        network.train()
        order = random.permutation(train)
        for start in range(0, len(order), batch):
            _step(network, optimiser, read_bag, targets, order[start : start + batch])
        schedule.step()
        losses.append(_loss(network.eval(), read_bag, targets, val))
        if epoch + 1 >= min(spec.min_epochs, spec.epochs) and losses[-1] < best_loss:
            best, best_loss, best_epoch = _copy(network), losses[-1], epoch
        elif best is not None and epoch - best_epoch >= spec.patience:
            break
    network.load_state_dict(best or _copy(network))
    facts = {"model": "gated attention", **spec.model_dump(), "kept_epoch": best_epoch + 1, "val_losses": losses}
    return AttentionModel(network.eval(), facts)


def _copy(network: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _step(network: Any, optimiser: Any, read_bag: ReadBag, targets: np.ndarray, rows: np.ndarray) -> None:
    optimiser.zero_grad()
    n_known = max(1, int((~np.isnan(targets[rows])).sum()))
    for row in rows:
        (_cells(network, read_bag, targets, int(row)) / n_known).backward()
    optimiser.step()


def _cells(network: Any, read_bag: ReadBag, targets: np.ndarray, row: int) -> Any:
    """Return the loss summed over the known labels of one bag."""
    import torch

    target = torch.from_numpy(targets[row])
    known = ~torch.isnan(target)
    logits = network(torch.from_numpy(read_bag(row)))[0]
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], target[known], reduction="sum")


def _loss(network: Any, read_bag: ReadBag, targets: np.ndarray, rows: list[int]) -> float:
    import torch

    with torch.inference_mode():
        total = sum(float(_cells(network, read_bag, targets, row)) for row in rows)
    return total / max(1, int((~np.isnan(targets[rows])).sum()))
