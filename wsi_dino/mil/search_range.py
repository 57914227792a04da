"""What a search may try for a hyper-parameter; stands in the annotation of the spec's field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Between:
    """Numbers between two ends.

    Attributes:
        low, high: the ends, both included.
        log: drawn evenly in the logarithm.
    """

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        """As `metrics.json` and the report say it."""
        return f"{self.low:g} to {self.high:g}{', by its logarithm' if self.log else ''}"


@dataclass(frozen=True)
class OneOf:
    """One of a few values.

    Attributes:
        values: all of one type, of those that JSON has.
    """

    values: tuple[bool | int | float | str, ...]

    def __str__(self) -> str:
        """As `metrics.json` and the report say it."""
        return ", ".join(map(str, self.values))


SearchRange = Between | OneOf
