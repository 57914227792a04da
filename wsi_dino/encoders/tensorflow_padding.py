"""Padding as TensorFlow does it, for networks trained there. Imports torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from wsi_dino.encoders.torchvision_guard import ensure_torchvision


def pad_as_tensorflow(network: nn.Module) -> int:
    """Let the strided convolutions and poolings of `network` pad as TensorFlow's ``SAME``; changed in place.

    Torch pads 3x3 kernels of stride 2 by one pixel on every side; ``SAME`` pads an even image at the
    bottom and right only, so that every output looks one pixel further. Without stride both agree.

    Returns:
        How many layers were replaced.
    """
    ensure_torchvision()
    from timm.layers.pool2d_same import MaxPool2dSame

    n_replaced = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride[0] > 1 and child.kernel_size[0] > 1:
                setattr(parent, name, _same_convolution(child))
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, MaxPool2dSame(child.kernel_size, child.stride))
            else:
                continue
            n_replaced += 1
    return n_replaced


def _same_convolution(convolution: nn.Conv2d) -> nn.Module:
    from timm.layers.conv2d_same import Conv2dSame

    shape: dict[str, Any] = {"kernel_size": convolution.kernel_size, "stride": convolution.stride}
    same = Conv2dSame(convolution.in_channels, convolution.out_channels, **shape, bias=convolution.bias is not None)
    same.weight = convolution.weight
    same.bias = convolution.bias
    return same
