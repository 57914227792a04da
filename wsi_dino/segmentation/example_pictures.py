"""Slices of held-out cases for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wsi_dino.segmentation.layout import SegmentationLayout
from wsi_dino.segmentation.overlays import best_slice, enlarged, make_overlay, principal_colours
from wsi_dino.segmentation.prepared import open_tensors
from wsi_dino.segmentation.results import Outcome
from wsi_dino.volumes.nifti_channels import read_channel
from wsi_dino.volumes.orientation import as_shown


def overlay_example(outcome: Outcome, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``image``, ``truth`` and ``predicted`` of the slice with most foreground, and which it is."""
    case = outcome.prepared.by_id[row["case_id"]]
    truth, predicted = case.labels(), _predicted(outcome, row)
    if predicted is None:
        return {"note": "Predictions were not kept, so that none can be shown.", "image": None}
    index = best_slice(truth, predicted)
    grey = case.grey(index, index + 1)[0, 0]
    overlay = make_overlay(grey, truth[index], predicted[index], case.spacing_mm[1:])
    where = f"slice {index + 1} of {len(truth)}"
    return {"note": where, "image": overlay.image, "truth": overlay.truth, "predicted": overlay.predicted}


def _predicted(outcome: Outcome, row: Mapping[str, Any]) -> np.ndarray | None:
    is_alone = outcome.layout.prediction(row["case_id"], row["fold"], is_alone=True)
    path = is_alone if is_alone.is_file() else _of_fold(outcome.layout, row)
    if not outcome.request.keep_predictions or not path.is_file():
        return None
    stored = read_channel(path)
    return np.asarray(as_shown(stored.voxels, stored.affine)[0], np.uint8)


def _of_fold(layout: SegmentationLayout, row: Mapping[str, Any]) -> Any:
    return layout.prediction(row["case_id"], row["fold"], is_alone=False)


def feature_pictures(outcome: Outcome) -> list[dict[str, Any]]:
    """Return for one held-out case the image and each layer's first three principal components as colours."""
    if outcome.request.is_network or not outcome.case_rows:
        return []
    case = outcome.prepared.by_id[outcome.case_rows[0]["case_id"]]
    path = _stack_path(outcome, case.case_id)
    if path is None:
        return []
    index = best_slice(case.labels(), case.labels())
    spacing = case.spacing_mm[1:]
    pictures = [
        {"name": channel["name"], "picture": enlarged(np.repeat(grey[0][..., None], 3, -1), spacing)}
        for channel, grey in zip(outcome.facts.channels, case.grey(index, index + 1), strict=True)
    ]
    numbers = outcome.facts.identity["layers"]
    with open_tensors(path) as file:
        maps = [file.get_slice(name)[index : index + 1] for name in sorted(file.keys())]
    for number, item in enumerate(maps):
        colours = principal_colours(np.asarray(item[0], np.float32))
        pictures.append({"name": f"layer {numbers[number]}", "picture": enlarged(colours, (1, 1))})
    return [{"case_id": case.case_id, "pictures": pictures}]


def _stack_path(outcome: Outcome, case_id: str) -> Any:
    found = [outcome.layout.stack(outcome.timing["feature_key"], case_id, "as-is")]
    return next((path for path in found if path.is_file()), None)
