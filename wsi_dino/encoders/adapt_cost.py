"""What learning an adapter will take, measured on a few images before it starts. Imports torch."""

from __future__ import annotations

import time

import numpy as np
import torch

from wsi_dino.encoders.adapt import AdaptedNetwork, AdaptSpec, training_precision
from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.base_encoder import BaseEncoder
from wsi_dino.encoders.lora import add_adapter


def measured_passes(base: BaseEncoder, backbone: Backbone, spec: AdaptSpec, images: np.ndarray) -> tuple[float, float]:
    """Return seconds an image of a training pass and of a forward pass; `backbone` is used up.

    Args:
        base: the encoder.
        backbone: of it.
        spec: the recipe.
        images: uint8 ``(n, height, width, 3)``.

    Raises:
        EncoderError: the encoder cannot be adapted.
    """
    add_adapter(backbone, base.record, spec.adapter)
    precision = training_precision(spec.precision, base.device, base.record)
    network = AdaptedNetwork(backbone, base.record, base.chosen_pooling, base.chosen_px, base.device, precision)
    taken = []
    for learning in (True, True, False):  # the first is for warming up
        begun = time.perf_counter()
        with torch.set_grad_enabled(learning):
            total = network.vectors(images).sum()
            if learning:
                torch.autograd.backward(total)
        float(total.detach())  # waits for an accelerator
        taken.append((time.perf_counter() - begun) / len(images))
    return taken[1], taken[2]


def duration_in_words(seconds: float) -> str:
    """Say a time in round words.

    Examples:
        >>> duration_in_words(42), duration_in_words(600), duration_in_words(9000)
        ('1 min', '10 min', '2.5 h')
    """
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
