"""Checks of segmentation figures: Dice, precision and recall of one row, distances, gains of a larger network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from wsi_dino.evaluation.published.outcome import Outcome, Published, Verdict, verdict_of
from wsi_dino.evaluation.published.printed_table import PrintedNumber, PrintedTable

_DATASETS = ("autopet", "hecktor")
# no scanner's field is longer; a whole-body scan is about 2 m
_LONGEST_BODY_MM = 3000


@dataclass(frozen=True)
class _Overlap:
    """Dice, precision and recall of one row and dataset of Table 10, in percent."""

    row: str
    dataset: str
    dice: PrintedNumber
    precision: PrintedNumber
    recall: PrintedNumber


def _overlaps(published: Published) -> Iterator[_Overlap]:
    table = published.tables[10]
    for dataset in _DATASETS:
        for row in table.rows():
            yield _Overlap(
                row, dataset, *(table.printed(row, f"{dataset}_{n}") for n in ("dice", "precision", "recall"))
            )


def check_dice_is_not_precision(published: Published) -> list[Outcome]:
    """Look for Dice equal to precision while recall is another: a figure in two columns."""
    outcomes = []
    for it in _overlaps(published):
        same = it.dice.number == it.precision.number != it.recall.number
        told = f"precision {it.precision.text}, recall {it.recall.text}"
        outcomes.append(Outcome("10", it.row, f"{it.dataset}_dice", it.dice.text, told, verdict_of(not same)))
    return outcomes


def check_dice_below_f1(published: Published) -> list[Outcome]:
    """Compare Dice with the harmonic mean of precision and recall, which a mean over patients cannot exceed.

    Dice of a patient is the harmonic mean of that patient's precision and recall, and the harmonic mean is concave.
    """
    outcomes = []
    for it in _overlaps(published):
        precision, recall = it.precision.number, it.recall.number
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else Decimal(0)
        # the harmonic mean rises at most twice as fast as either figure
        slack = it.dice.half_unit + 2 * (it.precision.half_unit + it.recall.half_unit)
        verdict = verdict_of(it.dice.number <= f1 + slack)
        outcomes.append(Outcome("10", it.row, f"{it.dataset}_dice", it.dice.text, f"at most {f1:.2f}", verdict))
    return outcomes


def check_no_overlap(published: Published) -> list[Outcome]:
    """Look for precision above 0 where recall is 0: both count the same voxels."""
    outcomes = []
    for it in _overlaps(published):
        lone = it.precision.number > 0 and it.recall.number == 0
        told = f"0, or a recall below {it.recall.half_unit}" if lone else f"recall {it.recall.text}"
        verdict: Verdict = "rounding" if lone else "holds"
        outcomes.append(Outcome("10", it.row, f"{it.dataset}_precision", it.precision.text, told, verdict))
    return outcomes


def check_distances(published: Published) -> list[Outcome]:
    """Look for HD95 that no body can hold, in millimetres or in voxels of a millimetre or more."""
    table = published.tables[10]
    outcomes = []
    for column in (f"{dataset}_hd95" for dataset in _DATASETS):
        printed = {row: table.printed(row, column) for row in table.rows()}
        for row, cell in printed.items():
            if cell.value is not None:  # `check_cells` tells of NaN
                holds = cell.value <= _LONGEST_BODY_MM
                told = "possible" if holds else f"above {_LONGEST_BODY_MM} mm"
                outcomes.append(Outcome("10", row, column, cell.text, told, verdict_of(holds)))
    return outcomes


def check_gain_of_size(published: Published) -> list[Outcome]:
    """Compare the gain from DINOv3-S to -B in Table 7 with that in Table 6: one step of size on like tasks."""
    here, there = (_gains(published.tables[number]) for number in (6, 7))
    apart = min(there) > max(here) or min(here) > max(there)
    printed, told = f"{min(here)} to {max(here)} in Table 6", f"{min(there)} to {max(there)} in Table 7"
    return [Outcome("6, 7", "DINOv3-B less DINOv3-S", "dice", printed, told, verdict_of(not apart))]


def _gains(table: PrintedTable) -> list[Decimal]:
    tasks = [column.name for column in table.number_columns if column.name.startswith("task")]
    return [table.value("DINOv3-B", task) - table.value("DINOv3-S", task) for task in tasks]
