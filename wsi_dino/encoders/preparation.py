"""Making a loaded network fast without changing what it computes beyond rounding. Imports torch."""

from __future__ import annotations

import torch

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.batch_norm_folding import fold_batch_norms
from wsi_dino.encoders.convolution_preparation import has_fused_convolution, make_bf16_convolutions
from wsi_dino.encoders.devices import dtype_of
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.runtimes import NumberFormat
from wsi_dino.encoders.vit_preparation import choose_cpu_attention, fold_layer_scales, keep_stream_in_fp32


def prepare_for_inference(
    backbone: Backbone, spec: EncoderSpec, input_px: int, device: str, dtype: torch.dtype
) -> Backbone:
    """Return `backbone` in eval mode on `device` in `dtype`, folded and laid out for speed.

    What can be multiplied together is, once and in fp32, before rounding to `dtype`.
    """
    backbone = fold_for_inference(backbone, spec, input_px)
    on_cpu, is_bf16 = device == "cpu", dtype == torch.bfloat16
    if backbone.is_convolutional and on_cpu and is_bf16 and has_fused_convolution():
        make_bf16_convolutions(backbone, input_px)
    if spec.patch_size is not None and on_cpu:
        choose_cpu_attention(backbone, spec.n_prefix_tokens + (input_px // spec.patch_size) ** 2)
    if on_cpu and is_bf16 and not backbone.is_convolutional and keep_stream_in_fp32(backbone):
        dtype = torch.float32  # of what is not in the blocks' branches, which are in bf16 now
    backbone = backbone.eval()
    backbone = backbone.to(device) if dtype == torch.float32 else backbone.to(device=device, dtype=dtype)
    if backbone.is_convolutional:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone


def fold_for_inference(backbone: Backbone, spec: EncoderSpec, input_px: int) -> Backbone:
    """Return `backbone` in eval mode, without gradients, made ready for `input_px`, with scales and norms folded."""
    backbone = backbone.eval().requires_grad_(False)
    if input_px != spec.input_px:
        backbone.fit_to(input_px)
    if backbone.is_convolutional:
        fold_batch_norms(backbone, input_px)
    if spec.patch_size is not None:
        fold_layer_scales(backbone)
    return backbone


def pixel_dtype(backbone: Backbone, precision: NumberFormat) -> torch.dtype:
    """Return the number format in which a prepared network takes its pixels: that of its first weights."""
    first = next(backbone.parameters(), None)
    if first is not None and first.is_floating_point():
        return first.dtype
    return dtype_of(precision)
