"""One rule of how a volume lies in memory: axial slices from the feet up, each seen as radiologists see it."""

from __future__ import annotations

import math

import numpy as np

from wsi_dino.errors import VolumeError

# A slice is shown with anterior on top and the patient's right on the viewer's left: columns run to the left and
# rows to posterior, against the axes of RAS+ (right, anterior, superior); slices run to superior, with them.
_SHOWN_SIGNS = (-1, -1, 1)
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


def voxel_axes(affine: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return for each voxel axis the patient axis it is nearest to (0 right, 1 anterior, 2 superior) and its sign.

    Args:
        affine: float ``(4, 4)``, voxel indices to mm in RAS+, as NIfTI has it.

    Raises:
        VolumeError: the matrix has a zero, endless or flat direction.

    Examples:
        >>> voxel_axes(np.diag([-0.7, -0.7, 2.5, 1.0]))
        ((0, -1), (1, -1), (2, 1))
    """
    directions = np.asarray(affine, np.float64)[:3, :3]
    lengths = np.linalg.norm(directions, axis=0)
    if not np.isfinite(directions).all() or (lengths == 0).any():
        raise VolumeError(f"Placing a volume in space: voxel sizes of {_mm(lengths)} mm make no sense.")
    cosines = directions / lengths
    if abs(np.linalg.det(cosines)) < 0.1:
        raise VolumeError("Placing a volume in space: two of its axes point the same way; the header is wrong.")
    axes: dict[int, tuple[int, int]] = {}
    left = np.abs(cosines)
    for _ in range(3):
        patient, voxel = np.unravel_index(int(left.argmax()), left.shape)
        axes[int(voxel)] = (int(patient), 1 if cosines[patient, voxel] > 0 else -1)
        left[patient, :], left[:, voxel] = -1, -1
    return tuple(axes[voxel] for voxel in range(3))


def _mm(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:g}" for length in lengths)


def axis_codes(affine: np.ndarray) -> str:
    """Return towards where each voxel axis runs, e.g. ``"LPS"``.

    Examples:
        >>> axis_codes(np.diag([-0.7, -0.7, 2.5, 1.0]))
        'LPS'
    """
    return "".join(_LETTERS[patient][sign > 0] for patient, sign in voxel_axes(affine))


def obliquity_deg(affine: np.ndarray) -> float:
    """Return the largest angle between a voxel axis and the patient axis it is nearest to."""
    directions = np.asarray(affine, np.float64)[:3, :3]
    cosines = directions / np.linalg.norm(directions, axis=0)
    straight = [abs(cosines[patient, voxel]) for voxel, (patient, _) in enumerate(voxel_axes(affine))]
    return math.degrees(math.acos(min(1.0, *straight)))


def as_shown(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a stored volume so that ``[z, y, x]`` is slice from inferior, row from anterior, column from the right.

    Nothing is interpolated: axes change places and directions only, to those nearest to the patient's.

    Args:
        voxels: ``(i, j, k)``, in the order of the affine's columns.
        affine: ``(4, 4)``, voxel indices to mm in RAS+.

    Returns:
        A view ``(n_slices, height, width)`` of `voxels`, and the affine of its indices in the order x, y, z.

    Raises:
        VolumeError: the affine makes no sense.

    Examples:
        >>> stored = np.zeros((2, 3, 4)); stored[0, 0, 0] = 7  # RAS+: the lowest, rearmost, leftmost voxel
        >>> shown, _ = as_shown(stored, np.eye(4))
        >>> shown.shape, float(shown[0, -1, -1])
        ((4, 3, 2), 7.0)
    """
    axes = voxel_axes(affine)
    of_patient = [next(v for v, (patient, _) in enumerate(axes) if patient == wanted) for wanted in range(3)]
    flips = [axes[voxel][1] != _SHOWN_SIGNS[patient] for patient, voxel in enumerate(of_patient)]
    to_stored = np.zeros((4, 4))
    to_stored[3, 3] = 1
    for patient, (voxel, flip) in enumerate(zip(of_patient, flips, strict=True)):
        to_stored[voxel, patient] = -1 if flip else 1
        to_stored[voxel, 3] = voxels.shape[voxel] - 1 if flip else 0
    step = {True: slice(None, None, -1), False: slice(None)}
    turned = voxels.transpose(of_patient[::-1])[tuple(step[flip] for flip in flips[::-1])]
    return turned, np.asarray(affine, np.float64) @ to_stored
