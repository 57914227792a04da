"""Attention of one slide on disk, so that heatmaps and reports can be made again without the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from wsi_dino.errors import FeatureFileError
from wsi_dino.provenance import write_hdf5_atomically

_FORMAT = "wsi_dino.attention/1"


@dataclass(frozen=True)
class SlideAttention:
    """What a model attended to on one slide.

    Attributes:
        slide_id: text id.
        fold: number of the fold whose model looked.
        score: probability of the positive (last) class.
        attention_weights: float32 ``(n,)`` after softmax, sum 1.
        coords: int64 ``(n, 2)``, top-left x, y in level-0 px.
        tile_wh_level0: footprint of a tile in level-0 px, or None when the features do not say.
        tile_score: what the weights are the softmax of: attention, or the standard score within the slide of
            what the model says of each tile by itself (`ModelRecord.tile_score`).
        contributions: float32 ``(n, n_outputs)``, what each tile adds to the model's outputs, of models whose
            outputs are such a sum; else None.
    """

    slide_id: str
    fold: int
    score: float
    attention_weights: np.ndarray
    coords: np.ndarray
    tile_wh_level0: tuple[int, int] | None
    tile_score: str = "attention"
    contributions: np.ndarray | None = None

    @property
    def lift(self) -> np.ndarray:
        """float64 ``(n,)``: attention weights over the even share 1 / n."""
        return self.attention_weights.astype(np.float64) * len(self.attention_weights)

    @property
    def evenness(self) -> float:
        """Entropy of the weights over that of even ones: 1 = looks everywhere alike, 0 = at one tile.

        Examples:
            >>> weights = np.full(8, 1 / 8, np.float32)
            >>> round(SlideAttention("S", 0, 0.5, weights, np.zeros((8, 2), int), None).evenness, 6)
            1.0
        """
        weights = self.attention_weights.astype(np.float64)
        if len(weights) < 2:
            return 1.0
        positive = weights[weights > 0]
        return float(-(positive * np.log(positive)).sum() / np.log(len(weights)))


def write_attention(path: Path, attention: SlideAttention) -> None:
    """Write atomically; equal content gives equal bytes.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with write_hdf5_atomically(path) as h5:
        h5.create_dataset("attention", data=np.asarray(attention.attention_weights, np.float32))
        h5.create_dataset("coords", data=np.asarray(attention.coords, np.int64))
        h5.attrs.update({
            "format": _FORMAT, "slide_id": attention.slide_id, "fold": attention.fold, "score": attention.score,
            "tile_wh_level0": np.array(attention.tile_wh_level0 or (0, 0), np.int64),
            "tile_score": attention.tile_score,
        })  # fmt: skip
        if attention.contributions is not None:
            h5.create_dataset("contributions", data=np.asarray(attention.contributions, np.float32))


def read_attention(path: Path) -> SlideAttention:
    """Read what `write_attention` wrote.

    Raises:
        FeatureFileError: the file is missing or broken.
    """
    try:
        with h5py.File(path, "r") as h5:
            width, height = (int(value) for value in h5.attrs["tile_wh_level0"])
            return SlideAttention(
                str(h5.attrs["slide_id"]), int(h5.attrs["fold"]), float(h5.attrs["score"]),
                h5["attention"][()], h5["coords"][()], (width, height) if width and height else None,
                str(h5.attrs.get("tile_score", "attention")),
                h5["contributions"][()] if "contributions" in h5 else None,
            )  # fmt: skip
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        advice = "Run the same `wsi-dino mil` again: it makes what is missing."
        raise FeatureFileError(f"Reading attention {path}: missing or broken ({error}). {advice}") from error
