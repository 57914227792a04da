"""The encoder that an adapter is learnt for, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_dino.encoders.loading import LoadedBackbone, load_backbone, load_encoder
from wsi_dino.encoders.record import EncoderSpec, Pooling

if TYPE_CHECKING:
    from wsi_dino.encoders.encoder import Encoder


@dataclass(frozen=True)
class BaseEncoder:
    """The encoder that is adapted, and where its weights come from: see `loading.load_encoder`.

    Attributes:
        record: of the encoder.
        tile_precision: number format when the slides are embedded, and of the products in training.
    """

    record: EncoderSpec
    pooling: str | None = None
    input_px: int | None = None
    weights: Path | None = None
    weights_dir: Path | None = None
    random_weights: int | None = None
    device: str = "cpu"
    tile_precision: str = "auto"
    workers: int = 0

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.record.name

    @property
    def chosen_pooling(self) -> Pooling:
        """The pooling asked for, else the record's."""
        asked = self.pooling or self.record.pooling
        return next(known for known in self.record.poolings if known == asked)

    @property
    def chosen_px(self) -> int:
        """The side asked for, else the record's."""
        return self.input_px or self.record.input_px

    def load(self) -> LoadedBackbone:
        """Return the network as it is trained."""
        loaded = load_backbone(
            self.record, weights=self.weights, weights_dir=self.weights_dir, random_weights=self.random_weights
        )
        loaded.backbone.require_pooling(self.chosen_pooling)
        return loaded

    def load_adapted(self, adapter: Path) -> Encoder:
        """Return the encoder with an adapter merged into it, ready to embed."""
        return load_encoder(
            self.name, device=self.device, precision=self.tile_precision, weights=self.weights,
            weights_dir=self.weights_dir, random_weights=self.random_weights, workers=self.workers, adapter=adapter,
        )  # fmt: skip
