"""Gradients of the units of one step, added in a fixed order whatever order they are finished in."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from wsi_dino.mil.packed import GradientBuffer


class GradientSum:
    """Float32 sum over units 0, 1, 2 ... of one step.

    A unit that is finished before its turn waits; so the sum is the same for any number of lanes,
    and there are hardly more buffers than lanes: they stay in cache, where one for each unit would
    sweep it.

    Args:
        model: whose gradients.
        dtype: of the buffers.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._free = [GradientBuffer(model, dtype)]
        self._total = torch.empty_like(self._free[0].flat, dtype=torch.float32)
        self._waiting: dict[int, GradientBuffer] = {}
        self._n_added = 0
        self._lock = threading.Lock()

    def borrow(self) -> GradientBuffer:
        """Return a buffer to write a unit's gradient to."""
        with self._lock:
            return self._free.pop() if self._free else GradientBuffer(self._model, self._dtype)

    def add(self, number: int, buffer: GradientBuffer) -> None:
        """Take the gradient of unit `number` and the buffer back."""
        with self._lock:
            self._waiting[number] = buffer
            while self._n_added in self._waiting:
                ready = self._waiting.pop(self._n_added)
                if self._n_added:
                    self._total.add_(ready.flat)
                else:
                    self._total.copy_(ready.flat)
                self._free.append(ready)
                self._n_added += 1

    def take(self) -> Tensor:
        """Return the sum (valid until the next `add`) and begin anew."""
        self._n_added = 0
        return self._total
