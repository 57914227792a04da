"""Checks of figures that are sums, means or counts of other printed figures."""

from __future__ import annotations

from decimal import Decimal

from wsi_dino.evaluation.published.outcome import Outcome, Published, judge, verdict_of
from wsi_dino.evaluation.published.printed_table import PrintedTable

_MODELS = ("DINOv3-S", "DINOv3-B", "DINOv3-L")
_SEGMENTATION_DATASETS = 14


def check_msd_averages(published: Published) -> list[Outcome]:
    """Compare the Average of Table 7 with the mean of the ten tasks."""
    tables = [published.tables[6], published.tables[7]]
    columns = [(table, column.name) for table in tables for column in table.number_columns]
    tasks = [(table, name) for table, name in columns if name != "average_dice"]
    outcomes = []
    for row in tables[1].rows():
        cells = [table.printed(row, column) for table, column in tasks]
        mean = sum((cell.number for cell in cells), Decimal(0)) / len(cells)
        slack = sum((cell.half_unit for cell in cells), Decimal(0)) / len(cells)
        printed = tables[1].printed(row, "average_dice")
        verdict = judge(printed, mean, slack)
        outcomes.append(Outcome("7", row, "average_dice", printed.text, f"{mean:.2f}", verdict))
    return outcomes


def check_voi_sums(published: Published) -> list[Outcome]:
    """Compare each VOI sum of Tables 8 and 9 with split + merge."""
    outcomes = []
    for table, prefix in _voi_sets(published):
        for row in table.rows():
            split, merge = (table.printed(row, f"{prefix}_voi_{part}") for part in ("split", "merge"))
            printed = table.printed(row, f"{prefix}_voi_sum")
            total = split.number + merge.number
            verdict = judge(printed, total, split.half_unit + merge.half_unit)
            outcomes.append(Outcome(str(table.number), row, f"{prefix}_voi_sum", printed.text, str(total), verdict))
    return outcomes


def check_split_and_merge(published: Published) -> list[Outcome]:
    """Look for rows that merge more than they split: all classic methods split more."""
    outcomes = []
    for table, prefix in _voi_sets(published):
        for row in table.rows():
            split, merge = (table.printed(row, f"{prefix}_voi_{part}") for part in ("split", "merge"))
            holds = split.number >= merge.number
            told = f"split {split.text}, merge {merge.text}"
            relation = "split >= merge" if holds else "merge > split"
            outcomes.append(Outcome(str(table.number), row, f"{prefix}_voi_merge", told, relation, verdict_of(holds)))
    return outcomes


def _voi_sets(published: Published) -> list[tuple[PrintedTable, str]]:
    tables = (published.tables[8], published.tables[9])
    return [
        (table, column.removesuffix("_voi_sum"))
        for table in tables for column in table.columns if column.endswith("_voi_sum")
    ]  # fmt: skip


def check_counts(published: Published) -> list[Outcome]:
    """Compare each whole that the text states with its parts."""
    return [
        Outcome(
            "", count.id, "", str(count.total), str(sum(count.parts)),
            "holds" if sum(count.parts) == count.total else "differs",
        )
        for count in published.counts
    ]  # fmt: skip


def check_sizes_present(published: Published) -> list[Outcome]:
    """Look for the three sizes of DINOv3 in each table of results."""
    outcomes = []
    for number, table in published.tables.items():
        missing = [model for model in _MODELS if not table.rows(model)]
        told = "no row of " + ", ".join(missing) if missing else "all three"
        outcomes.append(Outcome(str(number), "DINOv3", "method", "S, B, L", told, verdict_of(not missing)))
    return outcomes


def check_datasets(published: Published) -> list[Outcome]:
    """Look for datasets of the tables that section 2 does not describe, and count those of 3D segmentation."""
    described = {row["dataset"]: row["described_in_section"] for row in published.datasets}
    outcomes = []
    for number, table in published.tables.items():
        # in the order of the table, each once
        names = dict.fromkeys(column.dataset for column in table.number_columns)
        for dataset in (name for name in names if name not in ("", "MSD")):
            section = described.get(dataset, "")
            told = f"described in section {section}" if section else "described nowhere"
            outcomes.append(Outcome(str(number), dataset, "", "shown in the table", told, verdict_of(bool(section))))
    return [*outcomes, _segmentation_count(published)]


def _segmentation_count(published: Published) -> Outcome:
    """Tables hold these sets; the CREMI volumes count as one."""
    kept = {row["counted_as"] for row in published.datasets if row["track"] == "3D segmentation"}
    holds = len(kept) == _SEGMENTATION_DATASETS
    printed, recomputed = f"{_SEGMENTATION_DATASETS} datasets", f"{len(kept)} with CREMI as one"
    return Outcome("", "3D segmentation", "datasets", printed, recomputed, verdict_of(holds))
