"""The only place that calls waterz, which works in place, repeats one array, and prints from C++."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.neurons.optional_libraries import require


def join(
    affinities: np.ndarray,
    fragments: np.ndarray,
    thresholds: Sequence[float],
    scoring_function: str,
    n_bins: int,
) -> Iterator[npt.NDArray[np.uint64]]:
    """Yield the segments at each threshold, in one array that changes with the next.

    Args:
        affinities: 0..1 float32, or uint8: ``(3, z, y, x)``.
        fragments: left as they are.
        thresholds: ascending.
        scoring_function: waterz's name of it.
        n_bins: of the queue, 0 for an exact one.

    Raises:
        ConfigError: waterz is not installed.
    """
    waterz = require("waterz", "waterz")
    working = np.array(fragments, np.uint64, order="C")
    with _silent_stdout():
        found = waterz.agglomerate(
            _as_float(affinities), list(thresholds), fragments=working, scoring_function=scoring_function,
            discretize_queue=n_bins,
        )  # fmt: skip
        yield from found


def watershed(affinities: np.ndarray) -> npt.NDArray[np.uint64]:
    """Return waterz's watershed of affinities, uint64 ``(z, y, x)``; 0 where every affinity is about 0."""
    waterz = require("waterz", "waterz")
    with _silent_stdout():
        return np.array(next(iter(waterz.agglomerate(_as_float(affinities), [0.0]))), np.uint64)


def _as_float(affinities: np.ndarray) -> npt.NDArray[np.float32]:
    converted = np.ascontiguousarray(affinities, np.float32)
    if affinities.dtype == np.uint8:
        converted /= np.float32(255)
    return converted


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep what Python, C and C++ print there off stdout, which may hold one JSON object and nothing else."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            with redirect_stdout(nowhere):
                yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C holds back would come out later
        os.dup2(kept, 1)
        os.close(kept)
