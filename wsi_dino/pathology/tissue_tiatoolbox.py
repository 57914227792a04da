"""tiatoolbox's tissue maskers, for those who compare with work that used them. Extra: ``wsi_dino[tiatoolbox]``."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError

_loading = threading.Lock()


def require_tiatoolbox() -> None:
    """Raise ConfigError when tiatoolbox is not installed."""
    if importlib.util.find_spec("tiatoolbox") is None:
        raise ConfigError(
            "Segmenting with tiatoolbox: it is not installed. `pip install 'wsi_dino[tiatoolbox]'` adds it, "
            "or leave --segmenter at clam."
        )


def tiatoolbox_mask(rgb: np.ndarray, downsample_xy: tuple[float, float], segmenter: str) -> np.ndarray:
    """Return uint8 ``(height, width)``, 0 or 255, of one of tiatoolbox's maskers.

    Args:
        rgb: uint8 ``(height, width, 3)``, the whole slide at some level.
        downsample_xy: of that level; the morphological masker's kernel is 8 um at an assumed 0.5 um/px.
        segmenter: ``"tiatoolbox-otsu"`` or ``"tiatoolbox-morphological"``.

    Raises:
        ConfigError: tiatoolbox is not installed.
    """
    if rgb.min() == rgb.max():  # tiatoolbox has no threshold for one grey value
        return np.zeros(rgb.shape[:2], np.uint8)
    maskers = _load_maskers()
    masker = maskers.OtsuTissueMasker() if segmenter == "tiatoolbox-otsu" else _morphological(maskers, downsample_xy)
    (mask,) = masker.fit_transform([rgb])
    return np.where(mask, np.uint8(255), np.uint8(0))


def _morphological(maskers: Any, downsample_xy: tuple[float, float]) -> Any:
    kernel_px = max(1, round(16 / downsample_xy[0])), max(1, round(16 / downsample_xy[1]))
    return maskers.MorphologicalMasker(kernel_size=kernel_px)


def _load_maskers() -> Any:
    """Import tiatoolbox without its log handlers, which would print to stdout."""
    require_tiatoolbox()
    with _loading:
        if "tiatoolbox.tools.tissuemask" not in sys.modules:
            from wsi_dino.encoders.torchvision_guard import ensure_torchvision

            ensure_torchvision()
            root = logging.getLogger()
            before, level = list(root.handlers), root.level
            from tiatoolbox.tools import tissuemask as _  # noqa: F401

            root.handlers[:] = before
            root.setLevel(level)
            logging.captureWarnings(False)
        from tiatoolbox.tools import tissuemask

    return tissuemask
