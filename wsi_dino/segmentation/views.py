"""The eight ways a slice can lie: encoders see each as another picture, so that each has features of its own."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_Scalar = TypeVar("_Scalar", bound=np.generic)
# name -> (rows and columns swapped, rows turned round, columns turned round), the most useful first
_VIEWS = {
    "as-is": (False, False, False),
    "flip-x": (False, False, True),
    "half-turn": (False, True, True),
    "flip-y": (False, True, False),
    "quarter-turn": (True, True, False),
    "quarter-turn-back": (True, False, True),
    "transposed": (True, False, False),
    "transposed-back": (True, True, True),
}
VIEWS = tuple(_VIEWS)


def apply_view(volume: npt.NDArray[_Scalar], view: str) -> npt.NDArray[_Scalar]:
    """Return ``(..., y, x)`` as it looks in a view; a new array, contiguous.

    Examples:
        >>> apply_view(np.array([[[1, 2], [3, 4]]]), "quarter-turn").tolist()
        [[[2, 4], [1, 3]]]
    """
    is_swapped, rows, columns = _VIEWS[view]
    turned: Any = volume.swapaxes(-1, -2) if is_swapped else volume
    turned = turned[..., :: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(turned)


def undo_view(volume: npt.NDArray[_Scalar], view: str) -> npt.NDArray[_Scalar]:
    """Return ``(..., y, x)`` as it was before `apply_view`.

    Examples:
        >>> undo_view(np.array([[[2, 4], [1, 3]]]), "quarter-turn").tolist()
        [[[1, 2], [3, 4]]]
    """
    is_swapped, rows, columns = _VIEWS[view]
    turned: Any = volume[..., :: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(turned.swapaxes(-1, -2) if is_swapped else turned)
