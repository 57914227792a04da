"""A linear probe fitted to its optimum on the mean features, its penalty chosen on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wsi_dino.mil.fold_trainer import FoldTrainer
from wsi_dino.mil.objective import Objective
from wsi_dino.mil.training import TrainedFold

GRID = tuple(10.0**power for power in range(-4, 5))


class LinearFit(FoldTrainer):
    """Training of models whose only weights are those of a linear `head` on the mean feature; see `FoldTrainer`.

    Each strength of the penalty is a row of the history, from strong to weak; the one with the lowest validation
    loss is kept, the stronger one of equals.
    """

    def _resolve_precision(self) -> str:
        return "fp32"

    def run(self, on_epoch: Callable[[dict[str, float]], None]) -> TrainedFold:
        """Fit, choose, and return the model."""
        chosen = self._spec.options["c"]
        train, val = (self._known_means(slides) for slides in (self._train_ids, self._val_ids))
        history: list[dict[str, float]] = []
        fits: list[np.ndarray] = []
        for c in GRID if chosen is None else (chosen,):
            start = fits[-1] if fits else np.zeros((self._objective.n_outputs, train[0].shape[1] + 1))
            fits.append(fit_linear(self._objective, *train, c, start))
            losses = [
                float(self._objective.loss(_outputs(torch.from_numpy(fits[-1]), m), t, w)) for m, t, w in (train, val)
            ]
            row = {"epoch": len(history), "learning_rate": 0.0, "train_loss": losses[0], "val_loss": losses[1], "c": c}
            history.append(row)
            on_epoch(row)
        best = int(np.argmin([row["val_loss"] for row in history]))
        head = cast(nn.Linear, self._model.head)
        head.weight.data.copy_(torch.from_numpy(fits[best][:, :-1]))
        head.bias.data.copy_(torch.from_numpy(fits[best][:, -1]))
        return TrainedFold(self._model.cpu().eval(), tuple(history), best, self._precision)

    def _known_means(self, slides: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        scale = float(self._model.feature_scale)
        means = [self._bags.features(slide_id).astype(np.float64).mean(0) / scale for slide_id in slides]
        truth, weights = self._known(slides)
        return torch.from_numpy(np.stack(means)), truth.cpu(), weights.cpu().double()


def fit_linear(
    objective: Objective, means: Tensor, truth: Tensor, weights: Tensor, c: float, start: np.ndarray
) -> np.ndarray:
    """Return the weights that minimise ``loss + |W|^2 / (2 c n)``; the bias bears no penalty.

    With cross-entropy of three and more classes this is scikit-learn's ``LogisticRegression(C=c)``; of two, where
    it has one row of weights and this has two, that of ``C=2 * c``.

    Args:
        objective: the loss.
        means: float64 ``(n, embed_dim)``.
        truth: ``(n, k)``, as the objective wants it.
        weights: ``(n,)``, summing to one.
        c: inverse strength of the penalty.
        start: where to begin, ``(n_outputs, embed_dim + 1)``, the bias last.
    """
    from scipy.optimize import minimize

    def loss_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        rows = torch.from_numpy(flat.reshape(start.shape)).requires_grad_()
        loss = objective.loss(_outputs(rows, means), truth, weights) + rows[:, :-1].square().sum() / (
            2 * c * len(means)
        )
        (slope,) = torch.autograd.grad(loss, rows)
        return float(loss.detach()), slope.numpy().ravel()

    options: dict[str, Any] = {"maxiter": 2000, "maxfun": 4000, "gtol": 1e-8, "ftol": 1e-14}
    found = minimize(loss_and_slope, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x).reshape(start.shape)


def _outputs(rows: Tensor, means: Tensor) -> Tensor:
    return means @ rows[:, :-1].t() + rows[:, -1]
