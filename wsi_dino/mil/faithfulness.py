"""Bags with tiles taken away, scored again: the part of deletion and insertion that knows models."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from wsi_dino.evaluation.deletion_insertion import follow
from wsi_dino.mil.tile_probability import softmax, tile_logits

_SAME = 1e-4


class SubsetScores:
    """Class probabilities of any part of one slide's tiles.

    Where the logits of a bag are the mean of its tiles' logits weighted by attention, as in `ABMIL`, a part
    costs a sum; whether that holds is measured on the whole slide and on a half of it. Otherwise the model runs.

    Args:
        model: takes bags and a mask, returns logits and raw attention; in eval mode.
        features: float ``(n, embed_dim)``.
        device: where the model runs.

    Attributes:
        logits: float64 ``(n, n_classes)`` of each tile alone.
        raw_attention: float64 ``(n,)``.
        is_additive: whether the short way is taken.
    """

    def __init__(self, model: nn.Module, features: np.ndarray, device: str | torch.device = "cpu") -> None:
        self._model, self._device = model.to(device).eval(), torch.device(device)
        self._features = torch.from_numpy(np.ascontiguousarray(features)).to(self._device).float()
        self.logits = tile_logits(model, features, device=device)
        whole, raw = self._run(np.arange(len(features)))
        self.raw_attention = raw
        self._powers = np.exp(raw - raw.max())
        half = np.random.default_rng(0).permutation(len(features))[: (len(features) + 1) // 2]
        self.is_additive = bool(
            np.abs(self._sum(np.arange(len(features))) - softmax(whole)).max() < _SAME
            and np.abs(self._sum(half) - softmax(self._run(half)[0])).max() < _SAME
        )

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Return float64 ``(n_classes,)`` for the tiles with these indices."""
        return self._sum(kept) if self.is_additive else softmax(self._run(kept)[0])

    def _sum(self, kept: np.ndarray) -> np.ndarray:
        weights = self._powers[kept]
        if weights.sum() <= 0:  # all of them lie too far below the highest to be told apart from it
            weights = np.exp(self.raw_attention[kept] - self.raw_attention[kept].max())
        return softmax(weights @ self.logits[kept] / weights.sum())

    @torch.no_grad()
    def _run(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bag = self._features[torch.from_numpy(kept).to(self._device)][None]
        seen = self._model(bag, torch.ones(bag.shape[:2], dtype=torch.bool, device=self._device))
        return seen.outputs[0].double().cpu().numpy(), seen.attention[0].double().cpu().numpy()


def follow_attention(
    scores: SubsetScores, *, n_steps: int, n_random: int, rng: np.random.Generator
) -> tuple[int, dict[str, np.ndarray]]:
    """Return the index of the class that is said of the whole slide, and its curves (see `follow`)."""
    said = int(scores(np.arange(len(scores.raw_attention))).argmax())

    def score_of(kept: np.ndarray) -> float:
        return float(scores(kept)[said])

    return said, follow(scores.raw_attention, score_of, n_steps=n_steps, n_random=n_random, rng=rng)
