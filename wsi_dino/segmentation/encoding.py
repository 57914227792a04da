"""Stacked maps of all cases in all views that a set of folds needs, each made once. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_dino.item_queue import Item, ItemQueue
from wsi_dino.provenance import fingerprint
from wsi_dino.segmentation.feature_maps import Layer, Meeting, SliceEncoder
from wsi_dino.segmentation.feature_stack import FeatureStack, joined_layers, write_stack
from wsi_dino.segmentation.layout import SegmentationLayout
from wsi_dino.segmentation.prepared import PreparedCase
from wsi_dino.segmentation.request import FeatureSpec
from wsi_dino.segmentation.slice_geometry import SliceGeometry, default_patch_mm, plan_slice
from wsi_dino.segmentation.stack_samples import StackedCase
from wsi_dino.segmentation.views import VIEWS

_SEPARATOR = "@"


@dataclass(frozen=True)
class FeaturePlan:
    """How all slices of a dataset are shown to one encoder, resolved.

    Attributes:
        encoder: its name; `identity` what decides its maps.
        layers: as stored.
        meeting: of channels.
        patch_mm: one value for all cases.
        patch_px, cell_px: of the encoder.
        spacing_mm: median in-plane spacing of the cases.
    """

    encoder: str
    identity: Mapping[str, Any]
    layers: tuple[Layer, ...]
    meeting: Meeting
    patch_mm: float
    patch_px: int
    cell_px: int
    spacing_mm: float

    @property
    def key(self) -> str:
        """Name of the folder of these stacks."""
        return f"{self.encoder}-{self.fingerprint[:8]}"

    @property
    def fingerprint(self) -> str:
        """Of everything that decides a map but the case."""
        return fingerprint(
            self.identity, self.meeting, self.patch_mm, [(la.channels, la.stride_px) for la in self.layers]
        )

    def geometry(self, shape: Sequence[int], spacing_mm: Sequence[float], view: str = "as-is") -> SliceGeometry:
        """Return how slices of a volume (z, y, x) are shown in a view."""
        turned = slice(None, None, -1 if VIEWS.index(view) >= 4 else 1)
        height, width = shape[1:][turned]
        y, x = spacing_mm[1:][turned]
        return plan_slice((height, width), (y, x), patch_mm=self.patch_mm, patch_px=self.patch_px, cell_px=self.cell_px)

    def shown_px(self, case: PreparedCase) -> int:
        """Return the longer side of a case's slices as the encoder sees them."""
        geometry = self.geometry(case.shape, case.spacing_mm)
        return max(geometry.height_px, geometry.width_px)


def plan_features(encoder: SliceEncoder, spec: FeatureSpec, cases: Sequence[PreparedCase]) -> FeaturePlan:
    """Resolve what a patch covers and how channels meet, for all `cases` alike."""
    spacings = [float(np.mean(case.spacing_mm[1:])) for case in cases]
    n_channels = cases[0].n_channels
    meeting: Meeting = ("early" if n_channels <= 3 else "late") if spec.meeting == "auto" else spec.meeting
    patch_mm = spec.patch_mm or default_patch_mm(
        [case.extent_mm for case in cases],
        spacings,
        patch_px=encoder.patch_px,
        voxels_per_patch=spec.voxels_per_patch,
        max_px=spec.max_px // encoder.cell_px * encoder.cell_px,
    )
    layers = joined_layers(encoder.layers(), n_channels, meeting)
    return FeaturePlan(
        encoder.name, encoder.identity(), layers, meeting, patch_mm, encoder.patch_px, encoder.cell_px,
        float(np.median(spacings)),
    )  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """What encoding gave.

    Attributes:
        cases: with their stacks.
        seconds: of encoding, over all views, also of those found encoded.
        n_new: volumes (in a view each) that were encoded now.
    """

    cases: dict[str, StackedCase]
    seconds: float
    n_new: int


def encode_cases(
    layout: SegmentationLayout,
    encoder: SliceEncoder,
    plan: FeaturePlan,
    wanted: Mapping[str, Sequence[str]],
    prepared: Mapping[str, PreparedCase],
    advance: Callable[[str], None] = lambda text: None,
) -> Encoded:
    """Encode each case in each view wanted of it, or find it encoded.

    Args:
        layout: where to.
        encoder: of slices.
        plan: of `plan_features`.
        wanted: case ids and their views.
        prepared: the cases.
        advance: called after each.

    Raises:
        EncoderError: the encoder cannot do it.
        StorageError: the disk is full or the folder cannot be written.
    """
    pairs = [(case_id, view) for case_id, views in wanted.items() for view in views]
    pairs.sort(key=lambda pair: _side(plan, prepared[pair[0]], pair[1]))  # the encoder is made for one side at a time
    items = [
        Item(f"{case_id}{_SEPARATOR}{view}", fingerprint(plan.fingerprint, prepared[case_id].fingerprint, view))
        for case_id, view in pairs
    ]
    of_item = dict(zip([item.key for item in items], pairs, strict=True))
    queue = ItemQueue(
        layout.run, layout.data_stage("encode", plan.key), items,
        lambda item, row: _is_intact(layout, plan, *of_item[item.key], row),
    )  # fmt: skip
    n_new = 0
    while (claimed := queue.take()) is not None:
        try:
            row = _encode(layout, encoder, plan, prepared, of_item[claimed.item.key])
        except BaseException:
            queue.give_back(claimed)
            raise
        queue.finish(claimed, row)
        n_new += 1
        advance(claimed.item.key)
    seconds = sum(row["seconds"] for row in queue.rows())
    return Encoded({key: _stacked(layout, plan, prepared[key], views) for key, views in wanted.items()}, seconds, n_new)


def _side(plan: FeaturePlan, case: PreparedCase, view: str) -> int:
    return plan.geometry(case.shape, case.spacing_mm, view).side_px


def _is_intact(layout: SegmentationLayout, plan: FeaturePlan, case_id: str, view: str, row: dict[str, Any]) -> bool:
    path = layout.stack(plan.key, case_id, view)
    return path.is_file() and path.stat().st_size == row.get("bytes")


def _encode(
    layout: SegmentationLayout,
    encoder: SliceEncoder,
    plan: FeaturePlan,
    prepared: Mapping[str, PreparedCase],
    pair: tuple[str, str],
) -> dict[str, Any]:
    import time

    case, view = prepared[pair[0]], pair[1]
    began = time.perf_counter()
    path = layout.stack(plan.key, *pair)
    geometry = plan.geometry(case.shape, case.spacing_mm, view)
    shapes = write_stack(path, case.grey(), view, encoder, plan.meeting, geometry)
    return {
        "case_id": pair[0], "view": view, "status": "done", "shapes": shapes, "side_px": geometry.side_px,
        "bytes": path.stat().st_size, "seconds": round(time.perf_counter() - began, 3),
    }  # fmt: skip


def _stacked(layout: SegmentationLayout, plan: FeaturePlan, case: PreparedCase, views: Sequence[str]) -> StackedCase:
    stacks = {
        view: FeatureStack(
            layout.stack(plan.key, case.case_id, view), case.shape[0],
            plan.geometry(case.shape, case.spacing_mm, view), plan.layers,
        )
        for view in views
    }  # fmt: skip
    return StackedCase(case, stacks)
