"""Are these values Hounsfield units already? Decided from the voxels, said aloud, and refused where impossible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsi_dino.errors import VolumeError
from wsi_dino.volumes.volume import Rescale

HuPolicy = Literal["auto", "apply", "already"]
HU_POLICIES: tuple[HuPolicy, ...] = ("auto", "apply", "already")
AS_STORED = Rescale(1.0, 0.0, "as stored")

# Air is -1000 HU and lung -950 .. -500; nothing in or around a patient lies far below air but a scanner's padding,
# which is one constant value.
_AIR_HU = (-1150.0, -500.0)
_LEAST_AIR = 1e-3
_BELOW_AIR_HU, _SHARE_BELOW_AIR = -1250.0, 5e-3
_FAT_HU, _SPREAD_WITHOUT_FAT_HU = -200.0, 1500.0
_DENSEST_HU, _SHARE_DENSEST = 10_000.0, 1e-3
_SAMPLED_VOXELS = 1_000_000


@dataclass(frozen=True)
class HuDecision:
    """What turns the stored values into HU, and why.

    Attributes:
        rescale: to be applied.
        state: ``"applied"`` or ``"already"``.
        reason: in words, for the log.
    """

    rescale: Rescale
    state: Literal["applied", "already"]
    reason: str


def decide_hu(voxels: np.ndarray, rescale: Rescale | None, policy: HuPolicy = "auto") -> HuDecision:
    """Decide whether `rescale` still has to be applied.

    ``auto`` takes values for HU when some of them are air or lung (-1150 .. -500, one in a thousand), as they
    never are before a rescale with an intercept of -1024; else applies the rescale that is known. Applying it
    to files whose values are HU already is a known trap of CT-RATE's corrected files (CT-CLIP's issue 50).

    Args:
        voxels: stored values, 3D.
        rescale: what header or metadata say, or None.
        policy: ``auto``, ``apply`` (`rescale` must be known) or ``already``.

    Raises:
        VolumeError: nothing says how to get HU, or what comes out cannot be HU.

    Examples:
        >>> stored = np.tile(np.array([24, 1064], np.int16), (4, 4, 4))
        >>> decide_hu(stored, Rescale(1, -1024, "metadata")).state
        'applied'
        >>> decide_hu(stored - 1024, Rescale(1, -1024, "metadata")).state
        'already'
    """
    sample = _sample(voxels)
    decision = _decision(sample, rescale, policy)
    _refuse_impossible(sample * decision.rescale.slope + decision.rescale.intercept, decision)
    return decision


def _sample(voxels: np.ndarray) -> np.ndarray:
    step = max(1, round((voxels.size / _SAMPLED_VOXELS) ** (1 / 3)))
    return np.asarray(voxels[::step, ::step, ::step], np.float64).ravel()


def _decision(sample: np.ndarray, rescale: Rescale | None, policy: HuPolicy) -> HuDecision:
    if policy == "already":
        return HuDecision(AS_STORED, "already", "as asked")
    if policy == "apply":
        if rescale is None:
            raise VolumeError(
                "Rescaling to HU: asked to apply slope and intercept, but neither file nor table has them."
            )
        return HuDecision(rescale, "applied", f"as asked, {_told(rescale)}")
    if _has_air(sample):
        return HuDecision(AS_STORED, "already", "air and lung have their HU as stored")
    if rescale is not None:
        return HuDecision(rescale, "applied", f"no voxel is air as stored; {_told(rescale)}")
    if sample.min() < 0:
        return HuDecision(AS_STORED, "already", "negative values as stored, and no rescale known")
    raise VolumeError(
        f"Rescaling to HU: stored values run from {sample.min():g} to {sample.max():g}, none is air, and neither "
        "file nor table gives slope and intercept. Put rescale_slope and rescale_intercept into the table, or say "
        "--hu already."
    )


def _told(rescale: Rescale) -> str:
    return f"slope {rescale.slope:g}, intercept {rescale.intercept:g} ({rescale.source})"


def _has_air(sample: np.ndarray) -> bool:
    return float(np.mean((sample >= _AIR_HU[0]) & (sample <= _AIR_HU[1]))) >= _LEAST_AIR


def _refuse_impossible(hu: np.ndarray, decision: HuDecision) -> None:
    values = f"values from {hu.min():g} to {hu.max():g} HU"
    how = f"({decision.state}: {decision.reason})"
    if hu.min() == hu.max():
        raise VolumeError(f"Checking HU: every voxel is {hu.min():g} HU {how}; the volume is empty.")
    if _share_below_air(hu) > _SHARE_BELOW_AIR:
        raise VolumeError(
            f"Checking HU: {values}, many of them below air (-1000) {how}. Slope and intercept were probably applied "
            "twice: use --hu auto or --hu already."
        )
    if hu.min() > _FAT_HU and hu.max() - hu.min() > _SPREAD_WITHOUT_FAT_HU:
        raise VolumeError(
            f"Checking HU: {values}, neither air nor fat among them {how}. Slope and intercept were probably not "
            "applied: use --hu auto or --hu apply, and give them in the table where the file has none."
        )
    if float(np.mean(hu > _DENSEST_HU)) > _SHARE_DENSEST:
        raise VolumeError(f"Checking HU: {values}; more than one voxel in a thousand is denser than metal {how}.")


def _share_below_air(hu: np.ndarray) -> float:
    below = hu[hu < _BELOW_AIR_HU]
    if not len(below):
        return 0.0
    _, counts = np.unique(below, return_counts=True)  # padding is one value
    return float((len(below) - counts.max()) / len(hu))
