"""Radiographs to learn an adapter from: shuffled batches of what the encoder is shown. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_dino.encoders.adapt import Bag
from wsi_dino.encoders.read_ahead import read_ahead
from wsi_dino.radiology.adaptation import HeadPool
from wsi_dino.radiology.chest_image import ChestView, grey_square_rgb, read_chest_image
from wsi_dino.radiology.datasets.image_set import ImageSet

_BATCH = 32


@dataclass(frozen=True)
class ImageBags:
    """A bag is a batch of images, each with its labels.

    Attributes:
        images: all of which have a file.
        view: what the encoder is shown.
        batch_images: of one step.
    """

    images: ImageSet
    view: ChestView
    batch_images: int = _BATCH

    @property
    def head_pool(self) -> HeadPool:
        """Each image has logits of its own."""
        return "each"

    @property
    def recipe(self) -> dict[str, Any]:
        """The size of a step, and the view."""
        return {"images_of_a_step": self.batch_images, "view": self.view.model_dump(mode="json")}

    def bags(self, rows: Sequence[int], targets: np.ndarray, seed: int | None) -> Iterator[Bag]:
        """Yield batches of all rows, in an order drawn by `seed` or as they stand."""
        order = np.asarray(rows, np.int64)
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        batches = [order[at : at + self.batch_images] for at in range(0, len(order), self.batch_images)]
        for batch, images in read_ahead(self._read, batches, threads=2, ahead=3):
            yield Bag(images, targets[batch], float((~np.isnan(targets[batch])).sum()))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        files = [self.images.root / str(self.images.files[row]) for row in rows.tolist()]
        return np.stack([grey_square_rgb(read_chest_image(file).grey, self.view) for file in files])
