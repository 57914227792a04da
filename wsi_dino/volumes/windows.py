"""From Hounsfield units to grey values: the window through which the encoder looks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from wsi_dino.errors import ConfigError, nearest_name


@dataclass(frozen=True)
class Window:
    """Hounsfield units from `low_hu` (black) to `high_hu` (white)."""

    low_hu: float
    high_hu: float


# Level and width as commonly set at a workstation: lung -600/1500, mediastinum 40/400; wide is the range to which
# CT-CLIP clips (scripts/data_inference_nii.py).
WINDOWS = {"lung": Window(-1350, 150), "mediastinum": Window(-160, 240), "wide": Window(-1000, 1000)}
THREE = ("lung", "mediastinum", "wide")
_CUSTOM = re.compile(r"(-?\d+):(-?\d+)")


def parse_window(name: str) -> tuple[Window, ...]:
    """Return the windows of the red, green and blue channel; one window stands for all three.

    Args:
        name: ``lung``, ``mediastinum``, ``wide``, ``three`` (these, in this order, as the three channels) or
            ``LOW:HIGH`` in HU.

    Raises:
        ConfigError: something else.

    Examples:
        >>> parse_window("lung")
        (Window(low_hu=-1350, high_hu=150),)
        >>> [window.low_hu for window in parse_window("three")]
        [-1350, -160, -1000]
        >>> parse_window("-100:250")
        (Window(low_hu=-100.0, high_hu=250.0),)
    """
    if name == "three":
        return tuple(WINDOWS[one] for one in THREE)
    if name in WINDOWS:
        return (WINDOWS[name],)
    custom = _CUSTOM.fullmatch(name.strip())
    if custom is not None and float(custom[1]) < float(custom[2]):
        return (Window(float(custom[1]), float(custom[2])),)
    known = (*WINDOWS, "three")
    raise ConfigError(
        f"--window {name}: expected {', '.join(known)} or LOW:HIGH in HU, as in -100:250.{nearest_name(name, known)}"
    )


def grey_values(hu: np.ndarray, window: Window) -> np.ndarray:
    """Return uint8 of the shape of `hu`: 0 at or below the window, 255 at or above it, rounded between.

    Examples:
        >>> grey_values(np.array([-2000.0, -1000.0, 0.0, 1000.0, 3000.0]), Window(-1000, 1000)).tolist()
        [0, 0, 128, 255, 255]
    """
    scaled = (np.asarray(hu, np.float32) - np.float32(window.low_hu)) * np.float32(
        255 / (window.high_hu - window.low_hu)
    )
    np.clip(scaled, 0, 255, out=scaled)
    return np.asarray(np.rint(scaled, out=scaled), np.uint8)
