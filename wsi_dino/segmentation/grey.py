"""From the values of a scanner to the 8-bit grey an encoder of images takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.case import Channel

# z-scores from black to white; tails of MRI beyond carry scanner artefacts more than tissue
Z_RANGE = (-3.0, 4.0)


def as_grey(values: npt.NDArray[np.float32], channel: Channel) -> npt.NDArray[np.uint8]:
    """Return uint8 grey values of one channel of one volume.

    CT and PET go through the channel's window. MRI has no unit: each volume is standardised by mean and
    standard deviation of its voxels that are not 0, and z-scores of -3 .. 4 become 0 .. 255.

    Args:
        values: float32 ``(z, y, x)``.
        channel: says how.

    Examples:
        >>> as_grey(np.array([[[-200.0, -100.0, 75.0, 250.0, 900.0]]], np.float32), Channel("ct", "ct", (-100, 250)))
        array([[[  0,   0, 128, 255, 255]]], dtype=uint8)
    """
    if channel.window is not None:
        low, high = channel.window
        return _stretched(values, low, high)
    inside = values[values != 0]
    mean, std = (float(inside.mean()), float(inside.std())) if len(inside) else (0.0, 1.0)
    return _stretched(values, mean + Z_RANGE[0] * (std or 1.0), mean + Z_RANGE[1] * (std or 1.0))


def _stretched(values: npt.NDArray[np.float32], low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (np.asarray(values, np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    np.clip(scaled, 0, 255, out=scaled)
    return np.asarray(np.rint(scaled, out=scaled), np.uint8)
