"""A small residual symmetric 3D U-Net that learns affinities from voxels: the supervised baseline. Imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

# with fewer channels PyTorch takes its slow convolutions for one window of 16 x 96 x 96 on a CPU
WIDTHS = (16, 32, 64)


def _norm(n_channels: int) -> nn.Module:
    """Return a norm over one window: there is one a step, and contrast is changed at random in training alone."""
    return nn.InstanceNorm3d(n_channels, affine=True)


class _Residual(nn.Module):
    """In plane first, then two convolutions in 3D with a short cut around them."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(
            nn.Conv3d(n_in, n_out, (1, 3, 3), padding=(0, 1, 1), bias=False), _norm(n_out), nn.ELU()
        )
        self.body = nn.Sequential(
            nn.Conv3d(n_out, n_out, 3, padding=1, bias=False), _norm(n_out), nn.ELU(),
            nn.Conv3d(n_out, n_out, 3, padding=1, bias=False), _norm(n_out),
        )  # fmt: skip

    def forward(self, voxels: Tensor) -> Tensor:
        entered = self.entry(voxels)
        return functional.elu(entered + self.body(entered))


class ResidualUNet(nn.Module):
    """After the residual symmetric U-Net of Lee et al. 2017 (arXiv 1706.00120), narrower.

    Sections are pooled in plane alone; skips are added, not joined. Norms are of instances.

    Args:
        n_outputs: channels of the answer.
        widths: channels from the finest level to the coarsest.
    """

    def __init__(self, n_outputs: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.multiple = 2 ** (len(widths) - 1)
        self.entry = nn.Conv3d(1, widths[0], (1, 5, 5), padding=(0, 2, 2))
        self.down = nn.ModuleList(_Residual(a, b) for a, b in zip((widths[0], *widths), widths, strict=False))
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, (1, 2, 2), stride=(1, 2, 2)) for a, b in pairs)
        self.joined = nn.ModuleList(_Residual(a, a) for a, _ in pairs)
        self.last = nn.Conv3d(widths[0], n_outputs, 1)

    def forward(self, grey: Tensor) -> Tensor:
        """Return logits.

        Args:
            grey: float32 ``(n, 1, z, y, x)`` of 0..1, of any size.

        Returns:
            ``(n, n_outputs, z, y, x)``.
        """
        height, width = grey.shape[3:]
        missing = (-width % self.multiple, -height % self.multiple)
        voxels = functional.pad(grey * 2 - 1, (0, missing[0], 0, missing[1], 0, 0), mode="replicate")
        voxels = self.entry(voxels)
        skips: list[Tensor] = []
        for i, level in enumerate(self.down):
            voxels = level(functional.max_pool3d(voxels, (1, 2, 2)) if i else voxels)
            skips.append(voxels)
        for up, block, skip in zip(self.up, self.joined, skips[-2::-1], strict=True):
            voxels = block(up(voxels) + skip)
        answer: Tensor = self.last(voxels)
        return answer[..., :height, :width]


def weighted_mse(logits: Tensor, target: Tensor) -> Tensor:
    """Return the sum of w (p - t)^2 over the number of voxels, as the public EM code: channels are added up.

    Args:
        logits: ``(n, channels, z, y, x)``; p is their sigmoid.
        target: ``(2, n, channels, z, y, x)``: affinities t, and weights w.

    Examples:
        >>> logits = torch.zeros(1, 3, 1, 1, 1)
        >>> float(weighted_mse(logits, torch.stack([torch.ones_like(logits), torch.ones_like(logits)])))
        0.75
    """
    errors = target[1] * (torch.sigmoid(logits.float()) - target[0]) ** 2
    n_voxels = logits.numel() // logits.shape[1]
    return errors.sum() / n_voxels
