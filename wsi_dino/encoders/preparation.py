"""Making a loaded network fast without changing what it computes beyond rounding. Imports torch."""

from __future__ import annotations

import torch

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.batch_norm_folding import fold_batch_norms
from wsi_dino.encoders.convolution_preparation import has_fused_convolution, make_bf16_convolutions
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.vit_preparation import choose_cpu_attention, fold_layer_scales


def prepare_for_inference(
    backbone: Backbone, spec: EncoderSpec, input_px: int, device: str, dtype: torch.dtype
) -> Backbone:
    """Return `backbone` in eval mode on `device` in `dtype`, folded and laid out for speed.

    What can be multiplied together is, once and in fp32, before rounding to `dtype`.
    """
    backbone = backbone.eval().requires_grad_(False)
    if backbone.is_convolutional:
        fold_batch_norms(backbone, input_px)
        if device == "cpu" and dtype == torch.bfloat16 and has_fused_convolution():
            make_bf16_convolutions(backbone, input_px)
    if spec.patch_size is not None:
        fold_layer_scales(backbone)
        if device == "cpu":
            choose_cpu_attention(backbone, spec.n_prefix_tokens + (input_px // spec.patch_size) ** 2)
    backbone = backbone.eval().to(device=device, dtype=dtype)
    if backbone.is_convolutional:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone
