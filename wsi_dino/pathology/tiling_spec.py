"""Which tiles are cut from a slide: the request, and what it means for one slide in px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsi_dino.errors import ConfigError, SlideError
from wsi_dino.pathology.clam_grid import ContourRule

_LEVEL_TOLERANCE = 0.01  # a stored downsample of 4.0005 serves who asks for 4
_MAX_ENLARGEMENT = 1.2  # a slide of 0.55 um/px may serve who asks for 0.5, one of 1.0 may not

Pair = tuple[float, float]


class TilingSpec(BaseModel):
    """Which tiles are wanted.

    Attributes:
        mpp: um/px of a tile as an encoder gets it, or ``"native"`` for level 0 as it is; None with `level`.
        level: read this pyramid level as it is; None with `mpp`.
        tile_px: side of a tile in px, as an encoder gets it.
        stride_px: step of the grid in the same px; None = `tile_px`, tiles side by side.
        min_tissue: smallest share of tissue in a tile, 0..1; 0 keeps every tile that touches tissue.
            Not used with `compat`, whose rule is `contour_rule`.
        compat: ``"clam"`` gives CLAM's own coordinates; None one global grid.
        contour_rule: CLAM's choice of the points of a tile that must lie in a contour.
        padding: keep tiles that stick out of the slide on the right and at the bottom (white there).

    Examples:
        >>> TilingSpec(mpp=0.5).step_px
        224
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mpp: float | Literal["native"] | None = 0.5
    level: int | None = Field(default=None, ge=0)
    tile_px: int = Field(default=224, ge=1)
    stride_px: int | None = Field(default=None, ge=1)
    min_tissue: float = Field(default=0.25, ge=0, le=1)
    compat: Literal["clam"] | None = None
    contour_rule: ContourRule = "four_pt"
    padding: bool = False

    @model_validator(mode="after")
    def _check_resolution(self) -> TilingSpec:
        if (self.mpp is None) == (self.level is None):
            raise ValueError("give either mpp (um/px or native) or level, not both and not neither")
        if isinstance(self.mpp, float) and not 0.01 <= self.mpp <= 100:
            raise ValueError(f"mpp must be um/px between 0.01 and 100, got {self.mpp}")
        if self.compat == "clam" and self.level is None:
            raise ValueError("CLAM knows levels only: give level with compat")
        return self

    @property
    def step_px(self) -> int:
        """Step of the grid in px of a tile."""
        return self.tile_px if self.stride_px is None else self.stride_px

    @property
    def asked(self) -> float | str:
        """The resolution asked for, as stored: um/px, ``"native"`` or ``"level N"``."""
        return self.mpp if self.mpp is not None else f"level {self.level}"

    @classmethod
    def checked(cls, **values: Any) -> TilingSpec:
        """Return a spec of `values`.

        Raises:
            ConfigError: a name is unknown or a value is out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"][:1])
            message = first["msg"].removeprefix("Value error, ")
            got = f"; got {first['input']!r}" if name else ""
            raise ConfigError(f"Tiling: {name + ': ' if name else ''}{message}{got}.") from error


@dataclass(frozen=True)
class TileGeometry:
    """One slide's tiles in px.

    Attributes:
        level: pyramid level that is read.
        level_downsample_xy: its per-axis downsample.
        read_wh: px of that level that are read for a tile.
        tile_wh_level0: footprint of a tile in level-0 px.
        stride_xy_level0: step of the grid in level-0 px.
        mpp_found_xy: um/px of a tile as an encoder gets it, or None when unknown.
    """

    level: int
    level_downsample_xy: Pair
    read_wh: tuple[int, int]
    tile_wh_level0: tuple[int, int]
    stride_xy_level0: tuple[int, int]
    mpp_found_xy: Pair | None


def plan_geometry(
    slide_name: str, level_downsamples: Sequence[Pair], spec: TilingSpec, mpp_xy: Pair | None
) -> TileGeometry:
    """Return what `spec` means for a slide.

    An asked mpp gives a footprint of ``round(tile_px * asked / mpp)`` level-0 px on each axis, read from
    the coarsest level that is not coarser than asked (within 1 %) and resampled; levels are read as they are.

    Args:
        slide_name: for messages.
        level_downsamples: per-axis, of each level.
        spec: the request.
        mpp_xy: um/px at level 0; may be None when a level or ``native`` is asked for.

    Raises:
        SlideError: there is no such level, or the slide is coarser than what is asked for.
    """
    if isinstance(spec.mpp, float):
        if mpp_xy is None:
            raise SlideError(f"{slide_name}: tiling at {spec.mpp} um/px needs the slide's own um/px, which is unknown.")
        return _by_mpp(slide_name, level_downsamples, spec, spec.mpp, mpp_xy)
    level = spec.level or 0
    if level >= len(level_downsamples):
        raise SlideError(
            f"{slide_name}: --level {level} was asked for; it has levels 0 to {len(level_downsamples) - 1}."
        )
    downsample = level_downsamples[level]
    stride_downsample = (int(downsample[0]), int(downsample[1])) if spec.compat == "clam" else downsample
    return TileGeometry(
        level=level,
        level_downsample_xy=downsample,
        read_wh=(spec.tile_px, spec.tile_px),
        tile_wh_level0=_rounded(spec.tile_px, downsample),
        stride_xy_level0=_rounded(spec.step_px, stride_downsample),
        mpp_found_xy=None if mpp_xy is None else (mpp_xy[0] * downsample[0], mpp_xy[1] * downsample[1]),
    )


def _by_mpp(name: str, level_downsamples: Sequence[Pair], spec: TilingSpec, asked: float, mpp_xy: Pair) -> TileGeometry:
    wanted = (asked / mpp_xy[0], asked / mpp_xy[1])
    if min(wanted) < 1 / _MAX_ENLARGEMENT:
        raise SlideError(
            f"{name}: {asked} um/px was asked for, but its finest level has {max(mpp_xy):.4g} um/px, and detail is not "
            f"invented. Ask for --mpp {max(mpp_xy):.2g} or coarser, or for --mpp native."
        )
    limits = [size * (1 + _LEVEL_TOLERANCE) for size in wanted]
    fitting = [i for i, (x, y) in enumerate(level_downsamples) if x <= limits[0] and y <= limits[1]]
    level = fitting[-1] if fitting else 0
    downsample = level_downsamples[level]
    footprint = _rounded(spec.tile_px, wanted)
    return TileGeometry(
        level=level,
        level_downsample_xy=downsample,
        read_wh=(max(1, round(footprint[0] / downsample[0])), max(1, round(footprint[1] / downsample[1]))),
        tile_wh_level0=footprint,
        stride_xy_level0=_rounded(spec.step_px, wanted),
        mpp_found_xy=(mpp_xy[0] * footprint[0] / spec.tile_px, mpp_xy[1] * footprint[1] / spec.tile_px),
    )


def _rounded(px: int, downsample: Pair) -> tuple[int, int]:
    return max(1, round(px * downsample[0])), max(1, round(px * downsample[1]))
