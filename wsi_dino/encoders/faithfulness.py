"""Does a fast form of an encoder give the vectors of fp32? Measured on generated tiles at loading. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.runtimes import NumberFormat, Runtime
from wsi_dino.errors import EncoderError

LEAST_COSINE = 0.999
N_TILES = 12
# Optical densities of red, green and blue of the two stains, as published by Ruifrok and Johnston (2001).
_HAEMATOXYLIN, _EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)


class MakeEncoder(Protocol):
    """Makes an encoder from a network, which it consumes."""

    def __call__(self, backbone: Backbone, *, precision: NumberFormat, runtime: Runtime) -> Encoder: ...


def first_faithful(make: MakeEncoder, backbone: Backbone, formats: Sequence[NumberFormat], runtime: Runtime) -> Encoder:
    """Return the encoder in the first of `formats` whose vectors have a cosine of `LEAST_COSINE` to those of fp32.

    The worst of `generated_tiles` counts. fp32 in torch is what is compared with, and taken as it is.

    Raises:
        EncoderError: none of them has; with the cosine measured.
    """
    reference = make(copy.deepcopy(backbone), precision="fp32", runtime="torch")
    tiles = generated_tiles(reference.input_px)
    expected = reference.embed(tiles)
    for tried in formats:
        if (tried, runtime) == ("fp32", "torch"):
            return reference
        encoder = make(copy.deepcopy(backbone), precision=tried, runtime=runtime)
        cosine = least_cosine(encoder.embed(tiles), expected)
        if cosine >= LEAST_COSINE:
            return encoder
    raise EncoderError(
        f"Encoder {reference.spec.name}: with --runtime {runtime} in {tried} its vectors have a cosine of only "
        f"{cosine:.4f} to those of fp32 (the least of {len(tiles)} generated tiles; {LEAST_COSINE} is asked).\n"
        f"Use another --precision{'' if runtime == 'torch' else ' or --runtime torch'}."
    )


def least_cosine(vectors: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Return the least cosine of corresponding rows of two tables (n, dim); NaN counts as -1.

    Examples:
        >>> least_cosine(np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32)).__round__(4)
        0.7071
    """
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.nan_to_num(cosines, nan=-1.0).min())


def generated_tiles(side_px: int, n_tiles: int = N_TILES) -> npt.NDArray[np.uint8]:
    """Return images that look like stained tissue to a network, from dense nuclei to almost empty glass.

    Two stains absorb white light (Beer-Lambert): eosin in soft clouds, haematoxylin in round spots. From
    the first to the last there is less and less of both. Half of them have a grain of one grey value, none
    more: rounding shows most where there is little to see and no noise that hides it.

    Returns:
        uint8 (n_tiles, side_px, side_px, 3), always the same for the same arguments.
    """
    generator = torch.Generator().manual_seed(0)
    amount = torch.linspace(1.0, 0.0, -(-n_tiles // 2)).repeat_interleave(2)[:n_tiles].view(-1, 1, 1, 1) ** 1.5
    eosin = amount * (0.25 + 0.35 * _clouds(n_tiles, side_px, (3, 9, 27), generator))
    haematoxylin = amount * (0.1 + 1.2 * _spots(n_tiles, side_px, generator))
    density = eosin * _column(_EOSIN) + haematoxylin * _column(_HAEMATOXYLIN)
    grain = torch.randn(density.shape, generator=generator) * (torch.arange(n_tiles) % 2).view(-1, 1, 1, 1)
    grey_values = (245 * 10**-density + grain).round().clamp(0, 255)
    return grey_values.byte().permute(0, 2, 3, 1).contiguous().numpy()


def _column(densities: tuple[float, float, float]) -> Tensor:
    return torch.tensor(densities).view(1, 3, 1, 1)


def _clouds(n: int, side_px: int, cells: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return smooth noise (n, 1, side_px, side_px) in about 0..1, of several scales."""
    layers = [torch.rand(n, 1, count, count, generator=generator) for count in cells]
    return torch.stack([interpolate(layer, (side_px, side_px), mode="bicubic") for layer in layers]).mean(0)


def _spots(n: int, side_px: int, generator: torch.Generator) -> Tensor:
    """Return round spots with soft rims (n, 1, side_px, side_px) in 0..1: one or none in each of 14 x 14 cells."""
    seeds = (torch.rand(n, 1, 14, 14, generator=generator) < 0.35).float()
    return ((interpolate(seeds, (side_px, side_px), mode="bicubic") - 0.3) * 3).clamp(0, 1)
