"""Which epoch of a training is kept, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from wsi_dino.errors import DivergedError


class EarlyStopping:
    """Keeps the weights of the epoch with the lowest validation loss.

    Args:
        epochs: at most.
        min_epochs: epochs before the first that may be kept.
        patience: epochs without a better loss before training stops.

    Attributes:
        history: one row an epoch: ``epoch, learning_rate, train_loss, val_loss``.
        best_epoch: whose weights are kept.

    Examples:
        >>> stopping = EarlyStopping(epochs=9, min_epochs=1, patience=2)
        >>> losses = iter([0.5, 0.3, 0.4, 0.4, 0.1])
        >>> while stopping.add(1e-3, 0.0, next(losses), dict): pass
        >>> stopping.best_epoch, len(stopping.history)
        (1, 4)
    """

    def __init__(self, epochs: int, min_epochs: int, patience: int) -> None:
        self._epochs, self._earliest, self._patience = epochs, min(min_epochs, epochs), patience
        self._best_loss = math.inf
        self._best: Mapping[str, Tensor] | None = None
        self.best_epoch = 0
        self.history: list[dict[str, float]] = []

    def rate(self, first: float) -> float:
        """Return the learning rate of the epoch to come: from `first` to zero by a cosine."""
        return first * (1 + math.cos(math.pi * len(self.history) / self._epochs)) / 2

    def add(
        self, learning_rate: float, train_loss: float, val_loss: float, state: Callable[[], Mapping[str, Tensor]]
    ) -> bool:
        """Take an epoch into the history; return whether another one is to follow.

        Args:
            learning_rate: of the epoch.
            train_loss: mean over its steps.
            val_loss: after it.
            state: copies the weights; called when the epoch is the best so far.
        """
        epoch = len(self.history)
        self.history.append(
            {"epoch": epoch, "learning_rate": learning_rate, "train_loss": train_loss, "val_loss": val_loss}
        )
        if epoch + 1 >= self._earliest and val_loss < self._best_loss:
            self._best_loss, self.best_epoch, self._best = val_loss, epoch, state()
        worn_out = epoch + 1 >= self._earliest and epoch - self.best_epoch >= self._patience
        return epoch + 1 < self._epochs and not worn_out

    def best(self, n_slides: int, learning_rate: float) -> Mapping[str, Tensor]:
        """Return the weights kept.

        Args:
            n_slides: how many were trained on, for the message.
            learning_rate: at the start, for the message.

        Raises:
            DivergedError: the loss was never a finite number.
        """
        if self._best is None:
            raise DivergedError(
                f"Training on {n_slides} slides: the validation loss was never a finite number. "
                f"The learning rate of {learning_rate:g} is too high: lower --lr."
            )
        return self._best
