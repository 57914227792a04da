"""Every case read, checked and made grey once; a case that cannot be used is a row with its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_dino.errors import VolumeError
from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import fingerprint, slide_fingerprint
from wsi_dino.segmentation.case import Case, SegmentationDataset
from wsi_dino.segmentation.case_reading import read_case
from wsi_dino.segmentation.grey import Z_RANGE, as_grey
from wsi_dino.segmentation.layout import SegmentationLayout
from wsi_dino.segmentation.prepared import PreparedCase, write_prepared

_FORMAT = 1


@dataclass(frozen=True)
class PreparedCases:
    """All cases of a dataset.

    Attributes:
        by_id: those that can be used.
        rows: of all, with ``status`` done or failed, ``message`` and ``remarks``.
    """

    by_id: dict[str, PreparedCase]
    rows: tuple[dict[str, Any], ...]

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Rows of cases that cannot be used."""
        return [row for row in self.rows if row["status"] == "failed"]


def prepare_cases(
    layout: SegmentationLayout,
    dataset: SegmentationDataset,
    cases: Sequence[Case],
    advance: Callable[[str], None] = lambda case_id: None,
) -> PreparedCases:
    """Prepare `cases`, or find them prepared.

    Args:
        layout: where to.
        dataset: says what values mean.
        cases: of it.
        advance: called after each.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    by_id = {case.case_id: case for case in cases}
    items = [Item(case.case_id, _fingerprint(case, dataset)) for case in cases]
    queue = ItemQueue(layout.run, layout.data_stage("prepare"), items, lambda item, row: _is_intact(layout, item, row))
    while (claimed := queue.take()) is not None:
        case = by_id[claimed.item.key]
        try:
            row = _prepare(layout, dataset, case)
        except VolumeError as error:
            row = {"case_id": case.case_id, "status": "failed", "message": str(error), "remarks": []}
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, row)
        advance(case.case_id)
    rows = tuple(queue.rows())
    usable = {
        row["case_id"]: PreparedCase.of_row(layout.prepared(row["case_id"]), row)
        for row in rows
        if row["status"] == "done"
    }
    return PreparedCases(usable, rows)


def _fingerprint(case: Case, dataset: SegmentationDataset) -> str:
    files = [(file.path, file.index) for file in case.images] + [(case.label, None), (case.grid_file.path, None)] \
        if case.images else []  # fmt: skip
    contents = [
        (path.name, index, slide_fingerprint(path) if path.is_file() else None)
        for path, index in files
        if path is not None
    ]
    channels = [(channel.name, channel.modality, channel.window) for channel in dataset.channels]
    return fingerprint(_FORMAT, Z_RANGE, contents, case.problem, channels, sorted(dataset.classes), dataset.resample)


def _is_intact(layout: SegmentationLayout, item: Item, row: dict[str, Any]) -> bool:
    path = layout.prepared(item.key)
    return path.is_file() and path.stat().st_size == row.get("bytes")


def _prepare(layout: SegmentationLayout, dataset: SegmentationDataset, case: Case) -> dict[str, Any]:
    volumes = read_case(case, dataset)
    grey = np.stack([as_grey(v, c) for v, c in zip(volumes.channels, dataset.channels, strict=True)])
    row = write_prepared(layout.prepared(case.case_id), case.case_id, grey, volumes.labels, volumes.spacing_mm)
    remarks = list(volumes.remarks)
    absent = [name for value, name in dataset.classes.items() if str(value) not in row["voxels"]]
    if absent and volumes.labels is not None:
        remarks.append(f"the truth has no {', '.join(absent)}")
    return {**row, "status": "done", "message": "", "remarks": remarks}
