"""The features of many bags in one tensor on a device, read once and gathered by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsi_dino.mil.bags import BagStore

_SHARE = 0.5  # of the free memory; the rest is for the work itself


class ResidentFeatures:
    """Bags end to end, in the dtype they are stored in, and after them one row of zeros.

    Args:
        bags: features.
        slides: which bags, each once.
        device: where they are kept.

    Attributes:
        starts: row at which each slide begins.
        n_tiles: rows of each slide.
        padding: row of zeros.
        embed_dim: length of a row.

    Raises:
        FeatureFileError: a feature file is broken.

    Examples:
        >>> bags = BagStore.of_arrays({"a": np.ones((2, 3), np.float16), "b": np.full((1, 3), 2, np.float16)})
        >>> resident = ResidentFeatures(bags, ["a", "b"], torch.device("cpu"))
        >>> resident.gather(np.array([[1, 2, resident.padding]]), torch.float32)[0, :, 0].tolist()
        [1.0, 2.0, 0.0]
    """

    def __init__(self, bags: BagStore, slides: Sequence[str], device: torch.device) -> None:
        self.n_tiles = {slide: bags.n_tiles[slide] for slide in slides}
        ends = np.cumsum([0, *self.n_tiles.values()]).tolist()
        self.starts: dict[str, int] = dict(zip(slides, ends, strict=False))
        self.padding, self.embed_dim = int(ends[-1]), bags.embed_dim
        first = torch.from_numpy(bags.features(slides[0]))
        self._rows = torch.zeros(self.padding + 1, bags.embed_dim, dtype=first.dtype, device=device)
        for slide, start in self.starts.items():
            self._rows[start : start + self.n_tiles[slide]] = torch.from_numpy(bags.features(slide)).to(device)

    def gather(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        """Return the features at `rows` ``(..., n)`` as ``(..., n, embed_dim)`` of `dtype`."""
        index = torch.from_numpy(rows).to(self._rows.device)
        return self._rows[index].to(dtype)


def fits_on(device: torch.device, n_rows: int, embed_dim: int, itemsize: int) -> bool:
    """Tell whether so many rows leave at least half of the device's free memory to the work itself."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return n_rows * embed_dim * itemsize <= free * _SHARE
