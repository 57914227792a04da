"""A network's answer for a whole volume, from windows that overlap and are blended. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsi_dino.segmentation.feature_stack import Box, Crop, FeatureStack, window_boxes

_SIGMA = 0.125  # of a window's side, as nnU-Net's and MONAI's


def predict_volume(
    stack: FeatureStack,
    answer: Callable[[Crop], Tensor],
    *,
    n_outputs: int,
    window_slices: int,
    window_cells: int,
    overlap: float = 0.5,
) -> npt.NDArray[np.float32]:
    """Return the blended answers for all voxels of a stack.

    Windows are weighted by a Gaussian around their centre. A volume that fits one window is answered at once.

    Args:
        stack: of the volume.
        answer: gives ``(1, n_outputs, z, y, x)`` for a crop.
        n_outputs: channels of the answer.
        window_slices: largest window, in slices.
        window_cells: and in cells of the coarsest map.
        overlap: of neighbouring windows, at least.

    Returns:
        float32 ``(n_outputs, z, y, x)``.
    """
    boxes = window_boxes(stack.whole, window_slices, window_cells, overlap)
    if len(boxes) == 1:
        return _answer(stack, boxes[0], answer)[0]
    total = np.zeros((n_outputs, *stack.shape), np.float32)
    weights = np.zeros(stack.shape, np.float32)
    for box in boxes:
        answers, crop = _answer(stack, box, answer)
        weight = gaussian(answers.shape[1:])
        total[(slice(None), *crop.voxels)] += answers * weight
        weights[crop.voxels] += weight
    total /= weights
    return total


def _answer(stack: FeatureStack, box: Box, answer: Callable[[Crop], Tensor]) -> tuple[npt.NDArray[np.float32], Crop]:
    crop = stack.crop(box)
    with torch.inference_mode():
        answers: npt.NDArray[np.float32] = answer(crop)[0].float().cpu().numpy()
    return answers, crop


def added(total: npt.NDArray[np.float32] | None, more: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the sum, in the first array's own memory: answers for large volumes take gigabytes."""
    if total is None:
        return more
    total += more
    return total


def most_likely(chances: npt.NDArray[np.float32], label_values: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the label map of class probabilities ``(classes, z, y, x)``, slice by slice to spare memory.

    Examples:
        >>> most_likely(np.array([[[[0.2, 0.9]]], [[[0.8, 0.1]]]], np.float32), [0, 5])
        array([[[5, 0]]], dtype=uint8)
    """
    values = np.array(label_values, np.uint8)
    labels = np.empty(chances.shape[1:], np.uint8)
    for z in range(len(labels)):
        labels[z] = values[chances[:, z].argmax(0)]
    return labels


def gaussian(shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the weights of a window, 1 in its middle and never 0.

    Examples:
        >>> gaussian((1, 1, 3)).round(2)
        array([[[0.03, 1.  , 0.03]]], dtype=float32)
    """
    weights = np.ones(tuple(shape), np.float32)
    for axis, side in enumerate(shape):
        away = (np.arange(side) - (side - 1) / 2) / (_SIGMA * max(side, 1))
        line = np.exp(-0.5 * away**2).astype(np.float32)
        weights *= line.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.maximum(weights, np.float32(1e-4))
