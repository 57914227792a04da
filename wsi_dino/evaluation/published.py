"""Figures that the DINOv3 benchmark paper (arXiv 2509.06467, version 1) prints for whole slides and radiographs.

They are printed as published, to stand beside figures made here; nothing here reproduces them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsi_dino.evaluation.averaging import PrintedRow, RowCheck, check_row

SOURCE = "arXiv 2509.06467v1"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    Attributes:
        label: the encoder as the table spells it.
        encoder: its name here.
        auc, accuracy, precision, recall: as printed.
        half_unit: half of the last printed digit.
    """

    label: str
    encoder: str
    auc: float
    accuracy: float
    precision: float
    recall: float
    half_unit: float = 0.0005

    @property
    def printed(self) -> PrintedRow:
        """The row as `check_row` takes it."""
        return PrintedRow(self.accuracy, self.precision, self.recall, self.auc, self.half_unit)


@dataclass(frozen=True)
class PublishedTable:
    """One table, the tasks it belongs to, and the test slides that the text gives it.

    Attributes:
        name: as the paper numbers it.
        tasks: names of ours of the same question.
        n_positive, n_negative: slides with and without tumour of the test set.
        test_set: which slides these are.
        rows: from top to bottom.
    """

    name: str
    tasks: tuple[str, ...]
    n_positive: int
    n_negative: int
    test_set: str
    rows: tuple[PublishedRow, ...]

    def checks(self) -> list[tuple[PublishedRow, RowCheck]]:
        """Tell of each row which average of precision and recall it can be."""
        return [(row, check_row(row.printed, self.n_positive, self.n_negative)) for row in self.rows]


TABLES = (
    PublishedTable(
        "Table 2", ("rsna",), 922, 3_081,
        "test images of MGCA's classification split, if the paper used it: 922 with and 3,081 without pneumonia",
        (
            PublishedRow("BiomedCLIP", "biomedclip", 0.8831, 0.8374, 0.6368, 0.8026, 0.00005),
            PublishedRow("DINOv3-S", "dinov3-s", 0.8667, 0.8221, 0.6048, 0.8156, 0.00005),
            PublishedRow("DINOv3-B", "dinov3-b", 0.8666, 0.8274, 0.6227, 0.7679, 0.00005),
            PublishedRow("DINOv3-L", "dinov3-l", 0.8708, 0.8209, 0.5972, 0.7744, 0.00005),
        ),
    ),
    PublishedTable(
        "Table 3", ("camelyon16-cv", "camelyon16-official"), 49, 80,
        "Camelyon16 test set: 49 slides with and 80 without tumour",
        (
            PublishedRow("ResNet50 (ImageNet)", "resnet50", 0.842, 0.713, 0.594, 0.776),
            PublishedRow("UNI", "uni", 0.965, 0.951, 0.959, 0.938),
            PublishedRow("CONCH", "conch", 0.961, 0.944, 0.956, 0.928),
            PublishedRow("DINOv3-S", "dinov3-s", 0.840, 0.847, 0.898, 0.682),
            PublishedRow("DINOv3-B", "dinov3-b", 0.805, 0.800, 0.834, 0.629),
        ),
    ),
    PublishedTable(
        "Table 4", ("camelyon17-unseen",), 102, 222,
        "Camelyon17 Unseen, ITC dropped: 102 slides with and 222 without tumour",
        (
            PublishedRow("ResNet50 (ImageNet)", "resnet50", 0.852, 0.723, 0.607, 0.808),
            PublishedRow("UNI", "uni", 0.932, 0.937, 0.933, 0.928),
            PublishedRow("CONCH", "conch", 0.932, 0.939, 0.934, 0.913),
            PublishedRow("DINOv3-S", "dinov3-s", 0.854, 0.761, 0.589, 0.894),
            PublishedRow("DINOv3-B", "dinov3-b", 0.792, 0.710, 0.529, 0.820),
        ),
    ),
)  # fmt: skip


def tables_of(task: str) -> list[PublishedTable]:
    """Return the tables that answer the question of a task."""
    return [table for table in TABLES if task in table.tasks]


def published_section(task: str) -> list[dict[str, Any]]:
    """Return what the paper printed for a task as plain values, each row with its check."""
    return [
        {"table": table.name, "source": SOURCE, "test_set": table.test_set, "rows": [
            {
                "encoder": row.encoder, "label": row.label, "auc": row.auc, "accuracy": row.accuracy,
                "precision": row.precision, "recall": row.recall, **row_check_section(check),
            }
            for row, check in table.checks()
        ]}
        for table in tables_of(task)
    ]  # fmt: skip


def row_check_section(check: RowCheck) -> Mapping[str, Any]:
    """Return a check as plain values."""
    implied = check.implied_prevalence
    return {
        "prevalence": check.prevalence,
        "implied_prevalence": None if implied is None else dict(zip(("value", "low", "high"), implied, strict=True)),
        "deviation": {fit.convention: fit.deviation for fit in check.fits},
        "verdict": {fit.convention: fit.verdict for fit in check.fits},
        "can_be": check.conclusion,
    }
