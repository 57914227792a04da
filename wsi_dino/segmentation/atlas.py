"""Two answers that look at no image: nothing at all, and the mean shape of the training labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import fingerprint
from wsi_dino.segmentation.fold_work import FoldContext
from wsi_dino.segmentation.folds import SegmentationFold
from wsi_dino.segmentation.prepared import PreparedCase
from wsi_dino.segmentation.scores import score_labels

_LARGEST_SIDE = 64  # of the mean shape; larger volumes are looked at through fewer voxels


def atlas_rows(context: FoldContext, folds: Sequence[SegmentationFold]) -> list[dict[str, Any]]:
    """Return scores of both answers: one row a held-out case, class and ``baseline``.

    The mean shape stretches each training label over one box and takes the most frequent class of each place. On
    volumes that show one organ in one way it is hard to beat; where it is good, a Dice says little about features.
    """
    rows = []
    for fold in folds:
        contents = [(case_id, context.prepared[case_id].fingerprint) for case_id in (*fold.train, *fold.val)]
        item = Item(
            f"fold_{fold.number}",
            fingerprint(2, contents, fold.train, sorted(context.dataset.classes), context.scoring),
        )
        queue = ItemQueue(context.layout.run, context.layout.data_stage("baseline"), [item])
        while (claimed := queue.take()) is not None:
            try:
                found = _fold_rows(context, fold)
            except BaseException:
                queue.give_back(claimed)
                raise
            queue.finish(claimed, {"status": "done", "rows": found})
        rows += queue.rows()[0]["rows"]
    return rows


def _fold_rows(context: FoldContext, fold: SegmentationFold) -> list[dict[str, Any]]:
    train = [context.prepared[case_id] for case_id in fold.train]
    mean_shape = make_atlas(train, sorted(context.dataset.classes))
    rows = []
    for case_id in fold.val:
        case = context.prepared[case_id]
        truth = case.labels()
        answers = {"mean-shape": stretched(mean_shape, case.shape), "all-background": np.zeros_like(truth)}
        for name, labels in answers.items():
            scores = score_labels(truth, labels, case.spacing_mm, context.dataset.classes, context.scoring)
            rows += [{"baseline": name, "case_id": case_id, "fold": fold.number, **score} for score in scores]
    return rows


def make_atlas(cases: Sequence[PreparedCase], values: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the most frequent label of each place of a box of the cases' median shape."""
    median = np.median([case.shape for case in cases], axis=0)
    shape = tuple(int(side) for side in np.clip(np.rint(median), 1, _LARGEST_SIDE))
    counts = np.zeros((max(values) + 1, *shape), np.int32)
    for case in cases:
        labels = stretched(case.labels(), shape)
        for value in np.unique(labels):
            counts[value] += labels == value
    return counts.argmax(0).astype(np.uint8)


def stretched(labels: npt.NDArray[np.uint8], shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return labels with another number of voxels along each axis, nearest neighbour.

    Examples:
        >>> stretched(np.array([[[1, 2]]], np.uint8), (1, 1, 4)).tolist()
        [[[1, 1, 2, 2]]]
    """
    nearest = [((np.arange(n) + 0.5) * (old / n)).astype(int) for n, old in zip(shape, labels.shape, strict=True)]
    return labels[np.ix_(*nearest)]
