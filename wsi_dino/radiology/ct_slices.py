"""What the encoder sees of a volume: every axial slice, through a window, as a square RGB image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from wsi_dino.volumes.hounsfield import HuPolicy
from wsi_dino.volumes.volume import Volume
from wsi_dino.volumes.windows import Window, grey_values, parse_window

Aspect = Literal["pad", "squash", "crop"]


class SliceSpec(BaseModel):
    """The request that turns a volume into images.

    Attributes:
        window: see `volumes.windows.parse_window`; one window is repeated in all three channels.
        aspect: of slices that are not square: ``pad`` with black, ``squash``, or ``crop`` the middle.
        hu: see `volumes.hounsfield.decide_hu`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: str = "wide"
    aspect: Aspect = "pad"
    hu: HuPolicy = "auto"

    @field_validator("window")
    @classmethod
    def _known_window(cls, name: str) -> str:
        parse_window(name)
        return name

    @property
    def shown(self) -> str:
        """Text that says what an image shows; features of different ones cannot be mixed."""
        return f"axial CT slices, window {self.window}, {self.aspect}"


def slice_images(
    volume: Volume, spec: SliceSpec, side_px: int, interpolation: str, n_at_once: int
) -> Iterator[np.ndarray]:
    """Yield all slices from inferior to superior as uint8 ``(n, side_px, side_px, 3)``, `n_at_once` each.

    Resized here, by the encoder's own resize, one grey channel instead of three equal ones.
    """
    shades = [_Shade(volume, window) for window in parse_window(spec.window)]
    for start in range(0, len(volume), n_at_once):
        channels = np.stack([square(shade(start, start + n_at_once), spec.aspect) for shade in shades], axis=1)
        sized = _resized(channels, side_px, interpolation)
        yield np.repeat(sized, 3, axis=3) if len(shades) == 1 else sized


class _Shade:
    """Grey values of slices through one window; by a table where stored values are few, a tenth of the time."""

    def __init__(self, volume: Volume, window: Window) -> None:
        self._volume, self._window = volume, window
        dtype = volume.voxels.dtype
        self._table = None
        if dtype.kind in "iu" and dtype.itemsize <= 2:
            self._unsigned = np.dtype(f"u{dtype.itemsize}")
            stored = np.arange(2 ** (8 * dtype.itemsize)).astype(self._unsigned).view(dtype).astype(np.float32)
            self._table = grey_values(volume.to_hu(stored), window)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        if self._table is None:
            return grey_values(self._volume.hu(start, stop), self._window)
        stored = np.ascontiguousarray(self._volume.voxels[start:stop])
        return np.asarray(self._table[stored.view(self._unsigned)])


def square(grey: np.ndarray, aspect: Aspect) -> np.ndarray:
    """Return ``(n, height, width)`` as squares, or untouched for ``squash``, which the resize does.

    Examples:
        >>> square(np.ones((1, 2, 4), np.uint8), "pad").shape, square(np.ones((1, 2, 4), np.uint8), "crop").shape
        ((1, 4, 4), (1, 2, 2))
    """
    height, width = grey.shape[1:]
    if height == width or aspect == "squash":
        return grey
    if aspect == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return grey[:, top : top + side, left : left + side]
    side = max(height, width)
    padded = np.zeros((len(grey), side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    padded[:, top : top + height, left : left + width] = grey
    return padded


def _resized(channels: np.ndarray, side_px: int, interpolation: str) -> np.ndarray:
    """Resize ``(n, channels, height, width)`` to ``(n, side_px, side_px, channels)``."""
    import torch

    from wsi_dino.encoders.encoder import resized

    if channels.shape[2:] != (side_px, side_px):
        channels = resized(torch.from_numpy(np.ascontiguousarray(channels)), side_px, interpolation).byte().numpy()
    return np.ascontiguousarray(channels.transpose(0, 2, 3, 1))
