"""Networks of MONAI that learn from voxels, for comparison on the same folds. Imports torch and MONAI."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from wsi_dino.encoders.torchvision_guard import ensure_torchvision
from wsi_dino.errors import ConfigError

# Sides of what a network takes are multiples of this.
MULTIPLES = {"monai-unet": 16, "monai-vnet": 16, "monai-unetr": 16, "monai-swinunetr": 32}


class PaddedNetwork(nn.Module):
    """A network that takes volumes of any size: they are padded with their darkest value, the answer is cut.

    Args:
        network: of MONAI.
        multiple: of the sides it takes.
        fixed: the one size it takes, or None.
    """

    def __init__(self, network: nn.Module, multiple: int, fixed: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.network, self.multiple, self.fixed = network, multiple, fixed

    def forward(self, grey: Tensor) -> Tensor:
        """Return logits ``(1, classes, z, y, x)`` of grey values 0..1 ``(1, channels, z, y, x)``."""
        sides = grey.shape[2:]
        wanted = self.fixed or tuple(-(-side // self.multiple) * self.multiple for side in sides)
        missing = [max(0, w - side) for w, side in zip(wanted, sides, strict=True)]
        padded = functional.pad(grey * 2 - 1, [0, missing[2], 0, missing[1], 0, missing[0]], value=-1.0)
        answer: Tensor = self.network(padded)
        return answer[:, :, : sides[0], : sides[1], : sides[2]]


def make_network(kind: str, n_channels: int, n_outputs: int, window: tuple[int, int, int]) -> PaddedNetwork:
    """Return a network with fresh weights and MONAI's own defaults where it has some.

    Args:
        kind: of `MULTIPLES`.
        n_channels: of the image.
        n_outputs: classes with background.
        window: the largest crop (z, y, x); UNETR takes this size alone.

    Raises:
        ConfigError: MONAI is not installed.
    """
    ensure_torchvision()
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ConfigError(
            f"--model {kind}: this needs MONAI. Install it with: pip install 'wsi_dino[segmentation]'"
        ) from error
    multiple = MULTIPLES[kind]
    return PaddedNetwork(
        _network(nets, kind, n_channels, n_outputs, window), multiple, window if kind == "monai-unetr" else None
    )


def _network(nets: Any, kind: str, n_channels: int, n_outputs: int, window: tuple[int, int, int]) -> nn.Module:
    if kind == "monai-unet":
        made = nets.UNet(
            spatial_dims=3, in_channels=n_channels, out_channels=n_outputs, channels=(16, 32, 64, 128, 256),
            strides=(2, 2, 2, 2), num_res_units=2,
        )  # fmt: skip
    elif kind == "monai-vnet":
        made = nets.VNet(spatial_dims=3, in_channels=n_channels, out_channels=n_outputs)
    elif kind == "monai-unetr":
        made = nets.UNETR(in_channels=n_channels, out_channels=n_outputs, img_size=window, spatial_dims=3)
    else:
        made = nets.SwinUNETR(in_channels=n_channels, out_channels=n_outputs, feature_size=24, spatial_dims=3)
    network: nn.Module = made
    return network
