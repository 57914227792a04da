"""Dropout whose draw belongs to a bag, not to the thread or the order in which bags are worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LOCAL = threading.local()


@contextmanager
def dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Let every `SeededDropout` of this thread draw from a generator of `seed`."""
    before = getattr(_LOCAL, "generator", None)
    _LOCAL.generator = torch.Generator(device).manual_seed(seed)
    try:
        yield
    finally:
        _LOCAL.generator = before


class SeededDropout(nn.Module):
    """Dropout in training; see `dropout_seed`, without which it draws from torch's own generator.

    Args:
        share: of the values that are set to zero; the others grow by ``1 / (1 - share)``.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` of any shape with some of them dropped."""
        if not self.training or self.share == 0:
            return values
        keep = torch.empty_like(values).bernoulli_(1 - self.share, generator=getattr(_LOCAL, "generator", None))
        return values * keep / (1 - self.share)
