"""What a model would say of a slide that consisted of one tile alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

_TILES_AT_ONCE = 4096


@torch.no_grad()
def tile_logits(model: nn.Module, features: np.ndarray, *, device: str | torch.device = "cpu") -> np.ndarray:
    """Return the logits of the bag ``{x_i}`` for each tile i.

    In attention MIL whose classifier is linear (`ABMIL`), the attention of a single tile is 1, so these are
    ``H h_i + c``, and the logits of the slide are their mean weighted by attention: attention and tile
    logits together are all there is to the slide's score.

    Args:
        model: takes bags ``(n_bags, n, embed_dim)`` and a mask, returns a `ModelOutput`; in eval mode.
        features: float16 or float32 ``(n, embed_dim)`` of one slide.
        device: where the model runs.

    Returns:
        float64 ``(n, n_classes)``.
    """
    model = model.to(device).eval()
    parts = []
    for start in range(0, len(features), _TILES_AT_ONCE):
        bags = torch.from_numpy(features[start : start + _TILES_AT_ONCE]).to(device).float()[:, None]
        outputs = model(bags, torch.ones(bags.shape[:2], dtype=torch.bool, device=bags.device)).outputs
        parts.append(outputs.double().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 0))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, float64.

    Examples:
        >>> softmax(np.array([0.0, 0.0, np.log(2)])).round(3).tolist()
        [0.25, 0.25, 0.5]
    """
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
