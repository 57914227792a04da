"""Networks behind one face: normalised pixels to vectors and to feature maps. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from wsi_dino.encoders.record import EncoderSpec, Pooling
from wsi_dino.encoders.torchvision_guard import ensure_torchvision


class Backbone(nn.Module):
    """A network without classifier that gives one vector and several maps an image.

    Attributes:
        is_convolutional: whether memory is best laid out channels last.
    """

    is_convolutional = False

    def require_pooling(self, pooling: str) -> None:
        """Check, once the weights are in, that they hold what `pooling` needs.

        Raises:
            WeightsError: they do not.
        """

    def fit_to(self, input_px: int) -> None:
        """Make ready for images of another side than the record's; called once, before use, with weights in.

        Networks that see the side for themselves need nothing.
        """

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Return (batch, dim) for normalised `pixels` (batch, 3, height, width)."""
        raise NotImplementedError

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return one (batch, channels, height, width) for each of `layers`, prefix tokens removed."""
        raise NotImplementedError


def create_timm_network(record: EncoderSpec) -> Any:
    """Return timm's network of `record` without classifier and without weights."""
    ensure_torchvision()
    import timm

    return timm.create_model(record.architecture, num_classes=0, **record.architecture_options)


class TimmVit(Backbone):
    """A vision transformer of timm: tokens after the last norm, prefix tokens first."""

    def __init__(self, model: Any, n_prefix_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.n_prefix_tokens = n_prefix_tokens

    @classmethod
    def create(cls, record: EncoderSpec) -> Self:
        """Return the network of `record` without weights."""
        return cls(create_timm_network(record), record.n_prefix_tokens)

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Pool the tokens; averages are taken in fp32 whatever the network runs in."""
        tokens = self.tokens(pixels)
        return torch.cat([self._pooled(tokens, part) for part in pooling.split("+")], dim=1)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return (batch, n_tokens, dim) after the last norm, prefix tokens first."""
        tokens: Tensor = self.model.forward_features(pixels)
        return tokens

    def _pooled(self, tokens: Tensor, part: str) -> Tensor:
        if part == "cls":
            return tokens[:, 0].float()
        return tokens[:, self.n_prefix_tokens :].float().mean(1)

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the patch tokens after each of `layers` (block numbers from 0), before the last norm."""
        return _intermediates(self.model, pixels, layers)


class TimmCnn(Backbone):
    """A convolutional network of timm: the average of its last map."""

    is_convolutional = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def create(cls, record: EncoderSpec) -> Self:
        """Return the network of `record` without weights."""
        return cls(create_timm_network(record))

    def vectors(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """Average the last map over its area, in fp32 whatever the network runs in."""
        last = self.model.forward_features(pixels)
        if last.ndim == 4 and last.shape[1] == self.model.num_features:
            return last.float().mean((2, 3))
        if last.ndim == 4 and last.shape[3] == self.model.num_features:
            return last.float().mean((1, 2))
        return self.model.forward_head(last, pre_logits=True).float()

    def maps(self, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the maps after each of `layers` (stage numbers, timm's `feature_info`)."""
        return _intermediates(self.model, pixels, layers)


def _intermediates(model: Any, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    taken = model.forward_intermediates(pixels, indices=sorted(layers), intermediates_only=True, stop_early=True)
    by_layer = dict(zip(sorted(layers), taken, strict=True))
    return [by_layer[layer] for layer in layers]
