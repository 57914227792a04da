"""The single place that imports OpenCV, so that a missing system library is explained once.

Use ``from wsi_dino.pathology.opencv import cv2`` inside functions, or in modules that are themselves
imported inside functions only.
"""

from __future__ import annotations

from wsi_dino.errors import ConfigError

try:
    import cv2
except ImportError as error:  # pragma: no cover - needs a machine without the libraries
    raise ConfigError(
        f"Importing OpenCV failed: {error}. On Debian or Ubuntu `apt install libgl1 libglib2.0-0` supplies what "
        "opencv-python links to; or `pip uninstall opencv-python` and `pip install opencv-python-headless`."
    ) from error

if not hasattr(cv2, "resize"):  # pragma: no cover - two OpenCV packages, one of them uninstalled
    raise ConfigError(
        "Importing OpenCV gave an empty package: two variants were installed and one was removed. "
        "`pip install --force-reinstall --no-deps opencv-python` mends it."
    )

__all__ = ["cv2"]
