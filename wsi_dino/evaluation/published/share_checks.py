"""Checks of shares: bounds of all cells, and the share of positives that accuracy, precision and recall imply."""

from __future__ import annotations

from wsi_dino.evaluation.averaging import PrintedRow, implied_prevalence
from wsi_dino.evaluation.published.outcome import Outcome, Published, verdict_of
from wsi_dino.evaluation.published.printed_table import Column, PrintedNumber, PrintedTable
from wsi_dino.evaluation.published.slide_tables import TEST_SETS

_MOST = {"share": 1, "percent": 100}
_ALIKE = 2  # shares called positive by one rule are no more than this apart, as a ratio


def check_cells(published: Published) -> list[Outcome]:
    """Look at each column: numbers within the bounds of their unit, printed with the same digits."""
    results = [table for number, table in published.tables.items() if number > 1]
    return [_column_outcome(table, column) for table in results for column in table.number_columns]


def _column_outcome(table: PrintedTable, column: Column) -> Outcome:
    printed = {row: table.printed(row, column.name) for row in table.rows()}
    units = [cell.half_unit for cell in printed.values() if cell.value is not None]
    usual = max(units, key=units.count, default=None)
    wrong = {
        row: cell for row, cell in printed.items() if not _is_within(cell, column.unit) or cell.half_unit != usual
    }  # fmt: skip
    told = "not a number" if all(cell.value is None for cell in wrong.values()) else "out of bounds, or other digits"
    return Outcome(
        str(table.number), "; ".join(wrong), column.name, ", ".join(cell.text for cell in wrong.values()),
        told if wrong else f"{len(printed)} cells", verdict_of(not wrong),
    )  # fmt: skip


def _is_within(cell: PrintedNumber, unit: str) -> bool:
    return cell.value is not None and cell.value >= 0 and (unit not in _MOST or cell.value <= _MOST[unit])


def _row_of(table: PrintedTable, prefix: str, row: str) -> PrintedRow | None:
    """Return accuracy, precision and recall of a row; None where one is no share, which `check_cells` tells."""
    cells = [table.printed(row, f"{prefix}_{name}") for name in ("acc", "precision", "recall")]
    if not all(_is_within(cell, "share") for cell in cells):
        return None
    accuracy, precision, recall = (float(cell.number) for cell in cells)
    return PrintedRow(accuracy, precision, recall, half_unit=float(cells[0].half_unit))


def _implied(table: PrintedTable, prefix: str, row: str) -> tuple[float, float, float] | None:
    printed = _row_of(table, prefix, row)
    return None if printed is None else implied_prevalence(printed)


def check_one_test_set(published: Published) -> list[Outcome]:
    """Compare the share of positives that each row implies: rows of one test set share one."""
    return [_common_share(published.tables[2], "rsna"), _common_share(published.tables[5], "ct_rate")]


def _common_share(table: PrintedTable, prefix: str) -> Outcome:
    shares = [_implied(table, prefix, row) for row in table.rows()]
    known = [share for share in shares if share is not None]
    holds = len(known) == len(shares) and max(low for _, low, _ in known) <= min(high for _, _, high in known)
    told = ", ".join("none" if share is None else f"{share[0]:.4f}" for share in shares)
    where = f"{prefix}: share of positives"
    return Outcome(str(table.number), "all rows", where, "one test set", told, verdict_of(holds))


def check_test_set(published: Published) -> list[Outcome]:
    """Compare the share of positives that each whole-slide row implies with that of its test set."""
    return [
        _own_share(published.tables[number], row, n_positive, n_positive + n_negative)
        for number, (_, n_positive, n_negative, _) in TEST_SETS.items() for row in published.tables[number].rows()
    ]  # fmt: skip


def _own_share(table: PrintedTable, row: str, n_positive: int, n_slides: int) -> Outcome:
    prefix, own = table.number_columns[0].name.removesuffix("_auc"), n_positive / n_slides
    share = _implied(table, prefix, row)
    holds = share is not None and share[1] <= own <= share[2]
    told = "none" if share is None else f"{share[0]:.3f}"
    printed = f"{n_positive} of {n_slides} = {own:.3f}"
    return Outcome(str(table.number), row, f"{prefix}: share of positives", printed, told, verdict_of(holds))


def check_operating_point(published: Published) -> list[Outcome]:
    """Compare how many cases each row of Table 5 calls positive: one threshold rule calls about as many."""
    table = published.tables[5]
    outcomes = []
    for block in ("k-NN", "Linear Probing"):
        called = [_called_positive(table, row) for row in table.rows(end=f", {block}")]
        holds = max(called) <= _ALIKE * min(called)
        told = ", ".join(f"{share:.2f}" for share in called)
        outcomes.append(Outcome("5", block, "ct_rate: share called positive", "one rule", told, verdict_of(holds)))
    return outcomes


def _called_positive(table: PrintedTable, row: str) -> float:
    printed, share = _row_of(table, "ct_rate", row), _implied(table, "ct_rate", row)
    return 0.0 if printed is None or share is None else printed.recall * share[0] / printed.precision


def check_auc_and_accuracy(published: Published) -> list[Outcome]:
    """Look for the row of best AUC being the one of worst accuracy."""
    groups = [(2, "nih14", ""), (2, "rsna", ""), (3, "camelyon16", ""), (4, "camelyon17_unseen", "")]
    groups += [(5, "ct_rate", ", k-NN"), (5, "ct_rate", ", Linear Probing")]
    return [_auc_and_accuracy(published.tables[number], prefix, end) for number, prefix, end in groups]


def _auc_and_accuracy(table: PrintedTable, prefix: str, end: str) -> Outcome:
    rows = table.rows(end=end)
    best = max(rows, key=lambda row: table.value(row, f"{prefix}_auc"))
    worst = min(rows, key=lambda row: table.value(row, f"{prefix}_acc"))
    printed = f"best AUC, {table.printed(best, f'{prefix}_auc').text}"
    told = f"worst ACC, {table.printed(worst, f'{prefix}_acc').text}, is of {worst}"
    return Outcome(str(table.number), best, f"{prefix}_acc", printed, told, verdict_of(best != worst))
