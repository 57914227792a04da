"""Checks of an encoder that runs, whatever its weights. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from wsi_dino.encoders.check import NotChecked, require
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.known_vectors import known_tile
from wsi_dino.encoders.record_checks import check_map_shapes
from wsi_dino.errors import EncoderError

# Largest difference, in units of the vectors' root mean square, that the number format alone may cause.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "int8": 1e-1}
# A wrong normalisation must move vectors by so many tolerances to be noticed, but never has to by more than this.
_NOTICED = 10
_NOTICED_AT_MOST = 0.3
_MOST_IMAGES = 64


class Subject:
    """An encoder, images for it, and what it made of them.

    Attributes:
        encoder: loaded.
        images: uint8 (n, input_px, input_px, 3): noise, the known tile, black, white, noise ...; more than a chunk.
        vectors: float32 (n, embed_dim).
    """

    def __init__(self, encoder: Encoder) -> None:
        side, n = encoder.input_px, max(min(encoder.chunk_size + 1, _MOST_IMAGES), 5)
        self.encoder = encoder
        self.images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        self.images[1], self.images[2], self.images[3] = known_tile(side), 0, 255

    @cached_property
    def vectors(self) -> np.ndarray:
        return self.encoder.embed(self.images)


def check_vectors(subject: Subject) -> str:
    """Check shape and type of the vectors, also of no image."""
    encoder, vectors = subject.encoder, subject.vectors
    expected = (len(subject.images), encoder.embed_dim)
    require(vectors.shape == expected, f"expected {expected}, got {vectors.shape}")
    require(vectors.dtype == np.float32, f"expected float32, got {vectors.dtype}")
    none = encoder.embed(subject.images[:0])
    require(none.shape == (0, encoder.embed_dim), f"no image gives {none.shape}")
    return f"{vectors.shape[1]} float32 values an image at {encoder.input_px} px"


def check_frozen(subject: Subject) -> str:
    """Check that nothing of the network is in training mode or would be trained."""
    network = subject.encoder.network
    if not isinstance(network, nn.Module):
        raise NotChecked("it runs outside torch, where nothing can be trained")
    modules = list(network.modules())
    n_training = sum(module.training for module in modules)
    n_trained = sum(parameter.requires_grad for parameter in network.parameters())
    require(n_training == 0, f"{n_training} modules are in training mode")
    require(n_trained == 0, f"{n_trained} tensors of weights ask for a gradient")
    return f"{len(modules)} modules in eval mode, no gradients"


def check_repeatable(subject: Subject) -> str:
    """Check that the same images give the same vectors twice."""
    n = min(subject.encoder.chunk_size, len(subject.images))
    return _same(subject, subject.encoder.embed(subject.images[:n]), subject.vectors[:n], "between two calls")


def check_batches(subject: Subject) -> str:
    """Check that a vector does not depend on how many images were given, nor on which."""
    alone = subject.encoder.embed(subject.images[1:2])
    return _same(subject, alone, subject.vectors[1:2], f"between 1 and {len(subject.images)} images at once")


def check_order(subject: Subject) -> str:
    """Check that images in another order give the same vectors in that order."""
    reversed_back = subject.encoder.embed(subject.images[::-1])[::-1]
    return _same(subject, reversed_back, subject.vectors, "after reversing the order")


def check_extremes(subject: Subject) -> str:
    """Check that black, white and noise give finite vectors that differ."""
    vectors = subject.vectors[[0, 2, 3]]
    n_bad = int((~np.isfinite(subject.vectors)).sum())
    require(n_bad == 0, f"{n_bad} values are not finite on black, white and noise")
    require(len({vector.tobytes() for vector in vectors}) == 3, "black, white and noise give equal vectors")
    return f"finite on black, white and noise, largest {np.abs(vectors).max():.3g}"


def check_maps(subject: Subject) -> str:
    """Check shapes of the feature maps, and that a cell shows its own part of the image."""
    encoder = subject.encoder
    if not encoder.spec.feature_layers:
        raise NotChecked("the record names no feature_layers")
    maps = encoder.feature_maps(subject.images[:2])
    shapes = [tuple(one.shape) for one in maps]
    check_map_shapes(encoder.spec, encoder.input_px, shapes, n_images=2)
    require(all(bool(one.isfinite().all()) for one in maps), "they are not finite")
    n_cells = shapes[0][-1]
    row, column = _most_changed_cell(encoder, n_cells)
    # A convolution may answer strongest beside the change; a token is its own patch.
    slack = 0 if encoder.spec.patch_size else 1
    require(
        row <= slack and column >= n_cells - 1 - slack,
        f"a change of the upper right corner shows in row {row}, column {column} of {n_cells}",
    )
    return ", ".join(f"{one[1]}x{one[2]}x{one[3]}" for one in shapes) + "; a change shows in its own cell"


def _most_changed_cell(encoder: Encoder, n_cells: int) -> tuple[int, int]:
    """Return row and column of the first map that answer most to a change of the image's upper right cell.

    That corner tells rows from columns. The first block of a transformer is asked where it can be: later ones have
    mixed the patches.
    """
    images = np.stack([known_tile(encoder.input_px)] * 2)
    side = encoder.input_px // n_cells
    images[1, :side, -side:] = 255 - images[1, :side, -side:]
    try:
        (first,) = encoder.feature_maps(images, [0] if encoder.spec.patch_size else encoder.spec.feature_layers[:1])
    except EncoderError:
        (first,) = encoder.feature_maps(images, encoder.spec.feature_layers[:1])
    moved = (first[1] - first[0]).norm(dim=0)
    row, column = divmod(int(moved.argmax()), moved.shape[1])
    return row, column


def check_normalisation(subject: Subject) -> str:
    """Check that leaving out mean and std, or swapping red and blue, moves the vectors by more than rounding."""
    encoder, images, right = subject.encoder, subject.images[:2], subject.vectors[:2]
    plain: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    others = {"without mean and std": encoder.altered(**plain).embed(images),
              "with red and blue swapped": encoder.embed(images[..., ::-1])}  # fmt: skip
    if (encoder.spec.mean, encoder.spec.std) == (plain["mean"], plain["std"]):
        others.pop("without mean and std")
    least = min(_NOTICED * TOLERANCES[encoder.precision], _NOTICED_AT_MOST)
    moved = {name: difference(vectors, right) for name, vectors in others.items()}
    for name, distance in moved.items():
        require(distance > least, f"{name} the vectors move by {distance:.2g} of their size only: nobody would notice")
    return "; ".join(f"{name} the vectors move by {distance:.0%}" for name, distance in moved.items())


def difference(vectors: np.ndarray, others: np.ndarray) -> float:
    """Return the largest difference of values in units of the root mean square of `others`."""
    return float(np.abs(vectors - others).max() / max(float(np.sqrt((others.astype(np.float64) ** 2).mean())), 1e-30))


def _same(subject: Subject, vectors: np.ndarray, others: np.ndarray, when: str) -> str:
    precision = subject.encoder.precision
    distance, allowed = difference(vectors, others), TOLERANCES[precision]
    found = f"largest difference {when}: {distance:.2g} (allowed in {precision}: {allowed:g})"
    require(bool(np.isfinite(distance)) and distance <= allowed, found)
    return found


RUNNING_CHECKS: dict[str, Callable[[Subject], str]] = {
    "vectors": check_vectors,
    "frozen": check_frozen,
    "repeatable": check_repeatable,
    "batches": check_batches,
    "order": check_order,
    "extremes": check_extremes,
    "feature maps": check_maps,
    "normalisation": check_normalisation,
}
