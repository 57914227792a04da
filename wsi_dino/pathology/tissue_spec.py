"""What is tissue: the request, under the names that CLAM gave its parameters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsi_dino.errors import ConfigError, nearest_name

Segmenter = Literal["clam", "tiatoolbox-otsu", "tiatoolbox-morphological"]
Preset = Literal["biopsy", "resection", "tcga"]

CLAM_DEFAULTS: dict[str, Any] = {
    "seg_level": -1, "sthresh": 8, "mthresh": 7, "close": 4, "use_otsu": False,
    "a_t": 100, "a_h": 16, "max_n_holes": 8, "ref_patch_size": 512,
}  # fmt: skip
"""What CLAM's script takes when nothing is said; keeps only tissue larger than 100 tiles of 512 px."""

PRESETS: dict[str, dict[str, Any]] = {
    "biopsy": {"sthresh": 15, "mthresh": 11, "close": 2, "a_t": 1, "a_h": 1, "max_n_holes": 2},
    "resection": {"sthresh": 15, "mthresh": 11, "close": 4, "a_t": 100, "a_h": 16, "max_n_holes": 8},
    "tcga": {"sthresh": 8, "mthresh": 7, "close": 4, "a_t": 16, "a_h": 4, "max_n_holes": 8},
}
"""CLAM's preset files, each over `CLAM_DEFAULTS`."""


class TissueSpec(BaseModel):
    """How tissue is told from background.

    The defaults are CLAM's thresholds with smaller areas, so that biopsies are found without a preset;
    `clam_defaults` and `preset` give CLAM's own. Areas are counted in squares of `ref_patch_size`
    level-0 px.

    Attributes:
        segmenter: ``clam`` (saturation threshold) or one of tiatoolbox's.
        seg_level: pyramid level that is segmented; -1 takes the coarsest with a downsample of at most 64.
        sthresh: saturation (0-255) above which a pixel is tissue; unused with `use_otsu`.
        mthresh: side of the median filter in px of that level, odd.
        close: side of the closing kernel in px of that level; 0 closes nothing.
        use_otsu: choose the saturation threshold from each slide's histogram.
        a_t: smallest tissue area that is kept, exclusive.
        a_h: smallest hole that is kept, exclusive.
        max_n_holes: holes kept for each piece of tissue, the largest first.
        ref_patch_size: side of the unit of `a_t` and `a_h`, in level-0 px.
        no_pen: pen and ink are not tissue.

    Examples:
        >>> TissueSpec(sthresh=15).a_t == 1
        True
        >>> TissueSpec.preset("tcga").a_t
        16.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    segmenter: Segmenter = "clam"
    seg_level: int = Field(default=-1, ge=-1)
    sthresh: int = Field(default=8, ge=0, le=255)
    mthresh: int = Field(default=7, ge=1)
    close: int = Field(default=4, ge=0)
    use_otsu: bool = False
    a_t: float = Field(default=1, ge=0)
    a_h: float = Field(default=1, ge=0)
    max_n_holes: int = Field(default=64, ge=0)
    ref_patch_size: int = Field(default=512, ge=1)
    no_pen: bool = True

    @model_validator(mode="after")
    def _check_median(self) -> TissueSpec:
        if self.mthresh % 2 == 0:
            raise ValueError(f"mthresh is the side of a median filter and must be odd, got {self.mthresh}")
        return self

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> TissueSpec:
        """Return CLAM's preset `name`, with single parameters overridden.

        Raises:
            ConfigError: there is no such preset, or a parameter is wrong.
        """
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise ConfigError(f"Choosing a preset: {name!r} is none of {known}.{nearest_name(name, PRESETS)}")
        return cls.checked(**CLAM_DEFAULTS | PRESETS[name] | overrides)

    @classmethod
    def clam_defaults(cls, **overrides: Any) -> TissueSpec:
        """Return what CLAM's script does without a preset, with single parameters overridden."""
        return cls.checked(**CLAM_DEFAULTS | overrides)

    @classmethod
    def checked(cls, **values: Any) -> TissueSpec:
        """Return a spec of `values`.

        Raises:
            ConfigError: a name is unknown or a value is out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "tissue"
            raise ConfigError(f"Segmenting tissue: {name}: {first['msg']}; got {first['input']!r}.") from error
