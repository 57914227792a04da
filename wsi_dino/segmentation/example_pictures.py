"""Slices of held-out cases for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_dino.segmentation.feature_maps import pictures_of
from wsi_dino.segmentation.layout import SegmentationLayout
from wsi_dino.segmentation.learners import DecoderLearner
from wsi_dino.segmentation.overlays import best_slice, enlarged, make_overlay, principal_colours
from wsi_dino.segmentation.prepared import PreparedCase
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
    """Return what the encoder makes of the held-out slice with most foreground, one row a way of showing it.

    Each channel is shown alone, and several channels that meet early together too, as the decoder was given them.

    Returns:
        ``name``, ``case_id`` and ``pictures``: the slice, then each layer's first three principal components as
        colours. Nothing for a network of voxels.
    """
    learner = outcome.learner
    done = [row for row in outcome.case_rows if row["status"] == "done"]
    if not isinstance(learner, DecoderLearner) or not done:
        return []
    row = max(done, key=lambda row: sum(score["truth_voxels"] for score in row["scores"]))
    case = outcome.prepared.by_id[row["case_id"]]
    labels = case.labels()
    index = best_slice(labels, labels)
    grey = case.grey(index, index + 1)
    names = [channel["name"] for channel in outcome.facts.channels]
    shown = [(name, grey[i : i + 1]) for i, name in enumerate(names)]
    if len(names) > 1 and learner.plan.meeting == "early":
        shown.append(("+".join(names), grey))
    return [{"name": name, "case_id": case.case_id, "pictures": _seen_by(learner, case, part)} for name, part in shown]


def _seen_by(learner: DecoderLearner, case: PreparedCase, grey: npt.NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Return a slice uint8 ``(channels, 1, y, x)`` as it is shown, and the maps of it as colours."""
    (picture,) = pictures_of(grey, "early")
    maps = learner.encoder.encode(picture, learner.plan.geometry(case.shape, case.spacing_mm))
    found = [{"name": "the slice", "picture": enlarged(picture[0], case.spacing_mm[1:])}]
    for number, item in zip(learner.encoder.layer_numbers, maps, strict=True):
        colours = principal_colours(item[0].astype(np.float32))
        found.append({"name": f"layer {number}", "picture": enlarged(colours, (1, 1))})
    return found
