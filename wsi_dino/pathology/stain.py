"""Stain normalisation with tiatoolbox's methods, estimated once a slide. Extra: ``wsi_dino[tiatoolbox]``.

tiatoolbox estimates stains on every image anew, so that a blank tile is an error or comes out dark, and
equal tissue looks different from tile to tile. Here its extractors see one sample of the slide's tissue;
each tile then goes through the one map that follows from it, and white stays white.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.errors import ConfigError
from wsi_dino.pathology.embed_spec import StainMethod
from wsi_dino.pathology.slide import Slide
from wsi_dino.pathology.tile_grid import TileGrid
from wsi_dino.pathology.tile_reader import TileReader
from wsi_dino.provenance import file_sha256

TileNormaliser = Callable[[np.ndarray], np.ndarray]

_SAMPLE_TILES = 32
_SAMPLE_PIXELS = 200_000
_LEAST_PIXELS = 500
_WHITE_SHARE = 4  # one white pixel to so many of tissue, as the extractors expect some background
_BACKGROUND_ABOVE = 220
_INK_BELOW = 30
_DARK_BELOW = 150
_LEAST_COLOUR = 12
_PARALLEL_ABOVE = 0.99
_LEAST_CONCENTRATION = 0.05
_LEAST_STD = 0.5
_loading = threading.Lock()


@dataclass(frozen=True)
class Stains:
    """Optical densities of the two stains, and how strong they get.

    Attributes:
        matrix: float64 ``(2, 3)``, unit rows: haematoxylin, eosin.
        concentrations: float64 ``(2,)``, the 99th percentile of each.
    """

    matrix: np.ndarray
    concentrations: np.ndarray

    @property
    def trouble(self) -> str | None:
        """Why these cannot be the stains of a slide, or None."""
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.concentrations).all()):
            return "the estimate is not finite"
        if abs(float(self.matrix[0] @ self.matrix[1])) > _PARALLEL_ABOVE:
            return "both stains have one colour"
        if (self.concentrations < _LEAST_CONCENTRATION).any():
            return "one stain is absent"
        return None


@dataclass(frozen=True)
class LabColours:
    """Mean and standard deviation of tissue in the channels of CIE L*a*b*, each ``(3,)``."""

    means: np.ndarray
    stds: np.ndarray


class StainReference:
    """The image whose colours all slides are brought to.

    Args:
        method: ``"macenko"``, ``"vahadane"`` or ``"reinhard"``.
        path: the reference image, with tissue on it.

    Raises:
        ConfigError: tiatoolbox is not installed, or the image cannot be read or holds no two stains.
    """

    def __init__(self, method: StainMethod, path: Path) -> None:
        self.method = method
        self._tools = load_stain_tools()
        self._extractor = _make_extractor(self._tools, method)
        self.sha256, image = _read_image(path)
        pixels = tissue_pixels(image)
        self._stains, self._colours = None, None
        if len(pixels) < _LEAST_PIXELS:
            raise ConfigError(f"Reading the stain reference {path}: there is no tissue on it. Give an H&E image.")
        if method == "reinhard":
            self._colours = self._lab_colours(pixels)
            return
        self._stains = self._estimate(pixels)
        if self._stains is None or self._stains.trouble:
            why = self._stains.trouble if self._stains else "tiatoolbox finds no stains"
            raise ConfigError(f"Reading the stain reference {path}: {why}. Give an H&E image.")

    def fit_slide(self, slide: Slide, grid: TileGrid) -> tuple[TileNormaliser, str]:
        """Return the map for tiles of one slide, and on what it rests: see `fit`.

        Raises:
            SlideError: a tile of the sample cannot be read.
        """
        return self.fit(sample_tissue(slide, grid))

    def fit(self, pixels: np.ndarray) -> tuple[TileNormaliser, str]:
        """Return the map from colours of `pixels`, uint8 ``(n, 3)`` of tissue, to those of the reference.

        The text is ``"slide"``; ``"reference vectors: WHY"`` where the slide's own stains cannot be told
        apart, so that only their strength is adjusted; or ``"none: WHY"`` where nothing can be done.
        """
        if len(pixels) < _LEAST_PIXELS:
            return np.asarray, "none: hardly any tissue"
        if self._colours is not None:
            return self._reinhard(self._lab_colours(pixels), self._colours), "slide"
        assert self._stains is not None
        source = self._estimate(pixels)
        trouble = "tiatoolbox finds no stains" if source is None else source.trouble
        if source is not None and trouble is None:
            return _density_map(source, self._stains), "slide"
        source = Stains(self._stains.matrix, self._concentrations(_as_image(pixels), self._stains.matrix))
        if source.trouble is None:
            return _density_map(source, self._stains), f"reference vectors: {trouble}"
        return np.asarray, f"none: {trouble}"

    def _estimate(self, pixels: np.ndarray) -> Stains | None:
        image = _as_image(pixels)
        try:
            with np.errstate(all="ignore"):
                matrix = np.asarray(self._extractor.get_stain_matrix(image.copy()), np.float64)
                return Stains(matrix, self._concentrations(image, matrix))
        except (ValueError, ArithmeticError, np.linalg.LinAlgError):
            return None

    def _concentrations(self, image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        values = self._tools.StainNormalizer.get_concentrations(image.copy(), matrix)
        return np.percentile(values, 99, axis=0)

    def _lab_colours(self, pixels: np.ndarray) -> LabColours:
        means, stds = self._tools.ReinhardNormalizer().get_mean_std(pixels[:, None, :])
        return LabColours(np.asarray(means), np.asarray(stds))

    def _reinhard(self, source: LabColours, target: LabColours) -> TileNormaliser:
        tools = self._tools.ReinhardNormalizer
        scale = np.where(source.stds > _LEAST_STD, target.stds / np.maximum(source.stds, _LEAST_STD), 1.0)

        def normalise(tile: np.ndarray) -> np.ndarray:
            channels = tools.lab_split(tile)
            moved = [(c - m) * s + t for c, m, s, t in zip(channels, source.means, scale, target.means, strict=True)]
            result = tools.merge_back(*(channel.astype(np.float32) for channel in moved))
            return np.where(_is_tissue(tile)[..., None], result, tile)

        return normalise


def _make_extractor(tools: Any, method: StainMethod) -> Any:
    if method == "reinhard":
        return None
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what it warns of Vahadane's method stands in our --help
    try:
        return tools.get_normalizer(method).extractor
    finally:
        logging.disable(disabled)


def _density_map(source: Stains, target: Stains) -> TileNormaliser:
    """Return the map of RGB that unmixes `source` stains, scales them and mixes them as `target`.

    In optical densities that is one 3 x 3 matrix, the same for all tiles of a slide.
    """
    ratio = np.diag(target.concentrations / source.concentrations)
    mix = (np.linalg.pinv(source.matrix) @ ratio @ target.matrix).astype(np.float32)
    density = np.maximum(-np.log(np.maximum(np.arange(256), 1) / 255), 1e-6).astype(np.float32)

    def normalise(tile: np.ndarray) -> np.ndarray:
        return np.rint(np.minimum(255 * np.exp(-(density[tile] @ mix)), 255)).astype(np.uint8)

    return normalise


def sample_tissue(slide: Slide, grid: TileGrid) -> np.ndarray:
    """Return tissue pixels of up to 32 tiles spread evenly over the grid, uint8 ``(n, 3)``; always the same ones.

    Raises:
        SlideError: one of the tiles cannot be read.
    """
    reader = TileReader(slide, grid)
    chosen = np.unique(np.linspace(0, len(grid) - 1, min(len(grid), _SAMPLE_TILES)).astype(int))
    found = [tissue_pixels(reader.read(int(index)), _SAMPLE_PIXELS // _SAMPLE_TILES) for index in chosen]
    return np.concatenate(found) if found else np.empty((0, 3), np.uint8)


def tissue_pixels(image: np.ndarray, at_most: int = _SAMPLE_PIXELS) -> np.ndarray:
    """Return evenly spaced pixels of `image`, uint8 ``(height, width, 3)``, that are neither background nor ink."""
    pixels = image[_is_tissue(image)]
    step = max(1, -(-len(pixels) // at_most))
    return np.ascontiguousarray(pixels[::step])


def _is_tissue(image: np.ndarray) -> np.ndarray:
    low, high = image.min(axis=-1), image.max(axis=-1)
    stained = (high - low >= _LEAST_COLOUR) | (low < _DARK_BELOW)  # dust and paper are pale grey
    return stained & (low < _BACKGROUND_ABOVE) & (high >= _INK_BELOW)


def _as_image(pixels: np.ndarray) -> np.ndarray:
    white = np.full((len(pixels) // _WHITE_SHARE, 3), 255, np.uint8)
    return np.concatenate([pixels, white])[:, None, :]


def _read_image(path: Path) -> tuple[str, np.ndarray]:
    from PIL import Image

    try:
        sha256 = file_sha256(path)
        with Image.open(path) as image:
            return sha256, np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"Reading the stain reference {path}: {error}. Give a PNG, JPEG or TIFF of H&E-stained tissue."
        ) from error


def load_stain_tools() -> Any:
    """Import ``tiatoolbox.tools.stainnorm`` without the log handlers it would install (they print to stdout).

    Raises:
        ConfigError: tiatoolbox is not installed.
    """
    if importlib.util.find_spec("tiatoolbox") is None:
        raise ConfigError(
            "Normalising stains: tiatoolbox is not installed. `pip install 'wsi_dino[tiatoolbox]'` adds it, "
            "or leave out --stain-norm."
        )
    with _loading:
        from wsi_dino.encoders.torchvision_guard import ensure_torchvision

        ensure_torchvision()
        root = logging.getLogger()
        before, level = list(root.handlers), root.level
        tools = importlib.import_module("tiatoolbox.tools.stainnorm")
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)
    return tools
