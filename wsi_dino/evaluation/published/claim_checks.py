"""Checks of what the text says of the tables: one outcome for each claim and column."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise

from wsi_dino.evaluation.published.claims import Claim, Rule
from wsi_dino.evaluation.published.outcome import Outcome, Published, verdict_of
from wsi_dino.evaluation.published.printed_table import PrintedTable

# whether a claim holds in a column, and the figures that decide it
_Answer = tuple[bool, str]


class _Cells:
    """The figures of one column, turned so that more is better."""

    def __init__(self, table: PrintedTable, column: str) -> None:
        self.table, self.column = table, column
        self.sign = -1 if table.columns[column].better == "lower" else 1

    def goodness(self, row: str) -> Decimal:
        return self.sign * self.table.value(row, self.column)

    def best(self, rows: tuple[str, ...] | list[str]) -> str:
        return max(rows, key=self.goodness)

    def show(self, row: str) -> str:
        return f"{row} {self.table.printed(row, self.column).text}"


def check_claims(published: Published) -> list[Outcome]:
    """Check all claims.

    Raises:
        ResultError: a claim names a cell that is not there.
    """
    return [
        _outcome(claim, published.tables[claim.table], column) for claim in published.claims for column in claim.columns
    ]


def _outcome(claim: Claim, table: PrintedTable, column: str) -> Outcome:
    # asks for every cell first, so that a name that is wrong is told as such
    for row in (*claim.rows, *claim.than, *claim.among):
        table.value(row, column)
    cells = _Cells(table, column)
    holds, recomputed = _RULES[claim.rule](claim, cells)
    values = ", ".join(table.printed(row, column).text for row in claim.rows)
    printed = values if len(claim.rows) <= 3 else f"{len(claim.rows)} rows"
    return Outcome(str(table.number), claim.id, column, printed, recomputed, verdict_of(holds))


def _best(claim: Claim, cells: _Cells) -> _Answer:
    best = cells.best(claim.among or cells.table.rows())
    return cells.goodness(cells.best(claim.rows)) >= cells.goodness(best), f"best is {cells.show(best)}"


def _above(claim: Claim, cells: _Cells) -> _Answer:
    rival = cells.best(claim.than)
    if claim.some:
        own = cells.best(claim.rows)
        return cells.goodness(own) > cells.goodness(rival), f"{cells.show(own)} against {cells.show(rival)}"
    below = [row for row in claim.rows if cells.goodness(row) <= cells.goodness(rival)]
    if below:
        return False, f"{cells.show(rival)} is not below {'; '.join(map(cells.show, below))}"
    return True, f"all above {cells.show(rival)}"


def _factor(claim: Claim, cells: _Cells) -> _Answer:
    least = cells.table.value(cells.best(claim.than), cells.column)
    ratios = {row: cells.table.value(row, cells.column) / least for row in claim.rows}
    told = ", ".join(f"{ratio:.1f}x" for ratio in ratios.values())
    return min(ratios.values()) >= claim.factor, f"{told} of {cells.show(cells.best(claim.than))}"


def _rising(claim: Claim, cells: _Cells) -> _Answer:
    steps = [(before, after) for before, after in pairwise(claim.rows) if not _better(cells, before, after)]
    falls = [f"{after} not better than {before}" for before, after in steps]
    return not falls, "; ".join(falls) or "better at each step"


def _better(cells: _Cells, before: str, after: str) -> bool:
    return cells.goodness(after) > cells.goodness(before)


def _not_rising(claim: Claim, cells: _Cells) -> _Answer:
    rises, told = _rising(claim, cells)
    return not rises, told


def _equal(claim: Claim, cells: _Cells) -> _Answer:
    return cells.table.value(claim.rows[0], cells.column) == Decimal(claim.value), f"the text says {claim.value}"


_RULES: dict[Rule, Callable[[Claim, _Cells], _Answer]] = {
    "best": _best, "above": _above, "factor": _factor, "rising": _rising, "not rising": _not_rising, "equal": _equal,
}  # fmt: skip
