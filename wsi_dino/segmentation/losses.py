"""What decoders of classes learn by: Dice and cross-entropy. Imports torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

_SMOOTH = 1e-5


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the sum of soft Dice loss over foreground classes and cross-entropy over voxels.

    Dice is taken over the whole batch at once, so that a class that one crop lacks does not count as missed.

    Args:
        logits: ``(batch, classes, z, y, x)``, class 0 is background.
        target: int64 ``(batch, z, y, x)``.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[[[0, 1]]]])
        >>> sure = torch.tensor([[[[[20.0, -20.0]]], [[[-20.0, 20.0]]]]])
        >>> round(float(dice_cross_entropy(sure, target)), 4)
        0.0
    """
    logits = logits.float()
    chances = logits.softmax(1)[:, 1:]
    truth = functional.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:].to(chances)
    axes = (0, 2, 3, 4)
    common = (chances * truth).sum(axes)
    both = chances.sum(axes) + truth.sum(axes)
    dice = (2 * common + _SMOOTH) / (both + _SMOOTH)
    return (1 - dice).mean() + functional.cross_entropy(logits, target)
