"""Convolutions in bf16 on a CPU that stay true to fp32. Imports torch.

Rounding activations to bf16 hardly turns an embedding (cosine 0.9998 over EfficientNet-Lite0); rounding
the few weights of depthwise kernels and the biases does (0.997), because it shifts every output of a
channel the same way. So biases stay in fp32, a depthwise kernel is rounded such that its sum stays, and
what rounding a dense kernel shifts on average is put into its bias (over coloured noise of several
scales, not tissue: nothing of anyone's data decides a vector).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsi_dino.encoders.backbone import Backbone
from wsi_dino.encoders.torchvision_guard import ensure_torchvision

_FUSED_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.ReLU: ("relu", []),
}


def has_fused_convolution() -> bool:
    """Return whether this torch has the convolution that takes an fp32 bias and an activation with bf16 pixels."""
    return hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def make_bf16_convolutions(network: Backbone, input_px: int) -> int:
    """Replace the plain convolutions of `network` (batch norms folded), each with the activation after it.

    Returns:
        How many were replaced.
    """
    n_replaced = 0
    mean_inputs = _mean_inputs(network, input_px)
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for index, (name, child) in enumerate(children):
            if child not in mean_inputs:
                continue
            following = children[index + 1] if index + 1 < len(children) else None
            # Only what `fold_batch_norms` put in a norm's place surely follows its convolution.
            activation = following[1] if following and getattr(following[1], "follows_convolution", False) else None
            fused = _FUSED_ACTIVATIONS.get(type(activation)) if activation is not None else None
            setattr(parent, name, Bf16Convolution(child, fused, mean_inputs[child]))
            if fused is not None and following is not None:
                setattr(parent, following[0], nn.Identity())
            n_replaced += 1
    return n_replaced


def _mean_inputs(network: Backbone, input_px: int) -> dict[nn.Module, Tensor]:
    """Return the mean over coloured noise of every input channel of every plain convolution."""
    means: dict[nn.Module, Tensor] = {}

    def note(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        means[convolution] = inputs[0].double().mean((0, 2, 3))

    plain = [module for module in network.modules() if _is_plain(module)]
    hooks = [module.register_forward_pre_hook(note) for module in plain]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would give other last bits
    try:
        with torch.no_grad():
            network.vectors(_coloured_noise(input_px), "avg")
    finally:
        torch.set_num_threads(n_threads)
        for hook in hooks:
            hook.remove()
    return means


def _coloured_noise(side_px: int, n_images: int = 8) -> Tensor:
    """Return images (n_images, 3, side_px, side_px) in -1..1: a random colour each, with clouds of several scales."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n_images, 3, 1, 1, generator=generator).expand(-1, -1, side_px, side_px).clone()
    for cells in (4, 8, 16, 32, 64):
        clouds = torch.rand(n_images, 3, cells, cells, generator=generator) - 0.5
        images += nn.functional.interpolate(clouds, size=(side_px, side_px), mode="bicubic") * (0.6 / cells**0.3)
    return images.clamp(0, 1) * 2 - 1


def _is_plain(module: Any) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module).__name__ in ("Conv2d", "Conv2dSame")
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


class Bf16Convolution(nn.Module):
    """A convolution of bf16 pixels with bf16 weights, fp32 bias and, where given, an activation."""

    def __init__(self, convolution: Any, fused: tuple[str, list[float]] | None, mean_input: Tensor) -> None:
        super().__init__()
        weight = convolution.weight.data
        is_depthwise = convolution.groups == convolution.in_channels and convolution.groups > 1
        rounded = round_keeping_sums(weight) if is_depthwise else weight.bfloat16()
        # Plain attributes, so that casting the network leaves the bias in fp32.
        self.weight = rounded.contiguous(memory_format=torch.channels_last)
        self.bias = (_mean_shift(convolution, rounded, mean_input) + _bias(convolution)).float()
        self.padding, self.stride = list(convolution.padding), list(convolution.stride)
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        self.kernel_size = convolution.kernel_size
        self.pads_as_tensorflow = type(convolution).__name__ == "Conv2dSame"
        self.activation, self.limits = fused or ("none", [])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the convolution of `pixels` (batch, channels, height, width) in bf16."""
        if self.pads_as_tensorflow:
            ensure_torchvision()
            from timm.layers.padding import pad_same

            pixels = pad_same(pixels, self.kernel_size, self.stride, self.dilation)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            pixels, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups,
            self.activation, self.limits, "",
        )  # fmt: skip
        return result


def _bias(convolution: Any) -> Tensor:
    bias = convolution.bias
    return torch.zeros(convolution.out_channels, dtype=torch.float64) if bias is None else bias.data.double()


def _mean_shift(convolution: Any, rounded: Tensor, mean_input: Tensor) -> Tensor:
    """Return what each output loses on average by the rounding of the weights."""
    lost = (convolution.weight.data.double() - rounded.double()).sum((2, 3))
    inputs = mean_input.view(convolution.groups, 1, -1).expand(-1, len(lost) // convolution.groups, -1)
    return (lost * inputs.reshape(len(lost), -1)).sum(1)


def round_keeping_sums(weight: Tensor) -> Tensor:
    """Round `weight` (out, in, height, width) to bf16 so that each output's sum of weights changes least.

    From the largest to the smallest, each weight takes over what rounding the ones before it lost.

    Examples:
        >>> kernel = torch.tensor([1.003, 0.5, 0.001]).view(1, 1, 1, 3)
        >>> float(abs(round_keeping_sums(kernel).double().sum() - kernel.double().sum())) < 1e-5
        True
    """
    flat = weight.reshape(len(weight), -1).double()
    order = flat.abs().argsort(dim=1, descending=True)
    rounded, lost = torch.empty_like(flat), torch.zeros(len(flat), 1, dtype=torch.float64)
    for position in range(flat.shape[1]):
        index = order[:, position : position + 1]
        wanted = flat.gather(1, index) + lost
        nearest = wanted.bfloat16().double()
        rounded.scatter_(1, index, nearest)
        lost = wanted - nearest
    return rounded.bfloat16().reshape(weight.shape)
