"""How a network of the transformers library wants its pixels, read from its ``preprocessor_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from wsi_dino.errors import EncoderError

Triple = tuple[float, float, float]
# PIL's numbers for ways of resizing; what is not here is taken for the nearest of the two that an encoder has.
_INTERPOLATIONS: dict[Any, Literal["bilinear", "bicubic"]] = {
    0: "bilinear", 1: "bicubic", 2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic",
}  # fmt: skip


class PixelSettings(BaseModel):
    """What of the preparation decides the vectors of a square tile.

    Attributes:
        mean, std: per channel, on a 0..1 scale.
        interpolation: of the resize.
        input_px: side of the square that the network sees; None where the file says nothing of it.
        crop_fraction: share of the side that is kept after the resize.
    """

    model_config = ConfigDict(frozen=True)

    mean: Triple
    std: Triple
    interpolation: Literal["bilinear", "bicubic"]
    input_px: int | None
    crop_fraction: float


def read_pixel_settings(content: Mapping[str, Any], encoder: str, file: str) -> PixelSettings:
    """Return the settings in the content of a ``preprocessor_config.json``.

    Raises:
        EncoderError: a value is not what it should be, or the network does not take square colour images.

    Examples:
        >>> content = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 384, "width": 384},
        ...     "resample": 2}
        >>> settings = read_pixel_settings(content, "hf/x", "preprocessor_config.json")
        >>> settings.input_px, settings.interpolation, settings.mean
        (384, 'bilinear', (0.5, 0.5, 0.5))
    """
    content = content.get("image_processor", content)  # where one file holds the settings of several kinds of input
    resized = _side(content.get("size"), encoder, file) if content.get("do_resize", True) else None
    cropped = _side(content.get("crop_size"), encoder, file) if content.get("do_center_crop", False) else None
    mean, std = _mean_and_std(content, encoder, file)
    return PixelSettings(
        mean=mean,
        std=std,
        interpolation=_INTERPOLATIONS.get(content.get("resample", 2), "bicubic"),
        input_px=cropped or resized,
        crop_fraction=min(cropped / resized, 1.0) if cropped and resized else 1.0,
    )


def _side(size: Any, encoder: str, file: str) -> int | None:
    if isinstance(size, dict):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key) is not None}
        if len(sides) > 1:
            raise EncoderError(f"Encoder {encoder}: expected a square of pixels, {file} says {size}.")
        size = sides.pop() if sides else None
    if size is not None and (not isinstance(size, int) or size <= 0):
        raise EncoderError(f"Encoder {encoder}: expected a side in pixels, {file} says {size!r}.")
    return size


def _mean_and_std(content: Mapping[str, Any], encoder: str, file: str) -> tuple[Triple, Triple]:
    """Return both on a 0..1 scale, whatever factor the pixels are multiplied with before."""
    factor = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
    if not content.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = (_triple(content.get(key), key, encoder, file) for key in ("image_mean", "image_std"))
    scale = 1 / (255 * factor)
    if abs(scale - 1) < 1e-6:
        return mean, std
    scaled_mean, scaled_std = ((values[0] * scale, values[1] * scale, values[2] * scale) for values in (mean, std))
    return scaled_mean, scaled_std


def _triple(values: Any, key: str, encoder: str, file: str) -> Triple:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise EncoderError(f"Encoder {encoder}: expected {key} for three channels, {file} says {values!r}.")
    return float(values[0]), float(values[1]), float(values[2])
