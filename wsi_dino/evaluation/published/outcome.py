"""What a check of the published tables says of one cell or claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from wsi_dino.evaluation.published.claims import Claim, CountedSum
from wsi_dino.evaluation.published.printed_table import PrintedNumber, PrintedTable

Verdict = Literal["holds", "rounding", "differs"]


@dataclass(frozen=True)
class Published:
    """All that the checks look at.

    Attributes:
        tables: by number.
        datasets: rows of ``datasets.csv``: dataset, counted_as, track, described_in_section.
        counts: sums that the text states.
        claims: what the text says of the tables.
    """

    tables: Mapping[int, PrintedTable]
    datasets: tuple[Mapping[str, str], ...]
    counts: tuple[CountedSum, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Outcome:
    """What was found for one cell, row or claim.

    Attributes:
        table: its number or numbers; empty for the text alone.
        row, column: where; a claim stands in for the column where several are meant.
        printed: as printed.
        recomputed: what the other figures of the paper give.
        verdict: ``holds``; ``rounding`` (off, but by no more than the rounding of the printed figures can
            explain); ``differs``.
    """

    table: str
    row: str
    column: str
    printed: str
    recomputed: str
    verdict: Verdict


@dataclass(frozen=True)
class Check:
    """One identity.

    Attributes:
        name: for programs, as in ``anomalies.yaml``.
        title: in words: what must hold.
        run: gives an outcome for all that it looked at, also for what holds.
    """

    name: str
    title: str
    run: Callable[[Published], list[Outcome]]


def verdict_of(holds: bool) -> Verdict:
    """Return the verdict of a check that knows no rounding."""
    return "holds" if holds else "differs"


def judge(printed: PrintedNumber, recomputed: Decimal, slack: Decimal) -> Verdict:
    """Compare a printed figure with one made of other printed figures.

    Args:
        printed: the figure.
        recomputed: from figures that are rounded themselves.
        slack: the most that their rounding can have moved `recomputed`.

    Examples:
        >>> from wsi_dino.evaluation.published.printed_table import parse_printed
        >>> [judge(parse_printed("0.976"), Decimal(value), Decimal("0.001")) for value in ("0.976", "0.975", "0.971")]
        ['holds', 'rounding', 'differs']
    """
    off = abs(printed.number - recomputed)
    if off <= printed.half_unit:
        return "holds"
    return "rounding" if off <= printed.half_unit + slack else "differs"
