"""Making a loaded network fast without changing what it computes beyond rounding. Imports torch."""

from __future__ import annotations

import torch

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.batch_norm_folding import fold_batch_norms


def prepare_for_inference(backbone: Backbone, input_px: int, device: str, dtype: torch.dtype) -> Backbone:
    """Return `backbone` in eval mode on `device` in `dtype`, folded and laid out for speed."""
    backbone = backbone.eval().requires_grad_(False)
    if backbone.is_convolutional:
        fold_batch_norms(backbone, input_px)
    backbone = backbone.to(device=device, dtype=dtype)
    if backbone.is_convolutional:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone
