"""One experiment on neurons from two volumes to metrics and a report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from wsi_dino import share
from wsi_dino.claims import try_claim
from wsi_dino.errors import ConfigError
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder
from wsi_dino.segmentation.neurons.agglomeration import MOST_VOXELS_AT_ONCE, check_scoring, check_thresholds
from wsi_dino.segmentation.neurons.datasets import EmDataset
from wsi_dino.segmentation.neurons.fragments import EDGE_BYTES
from wsi_dino.segmentation.neurons.layout import EmLayout, StageRows
from wsi_dino.segmentation.neurons.optional_libraries import require
from wsi_dino.segmentation.neurons.request import STAGES, EmRequest
from wsi_dino.segmentation.neurons.stages import (
    Experiment,
    Told,
    affinity_key,
    join_fragments,
    make_fragments,
)


def segment_neurons(request: EmRequest, dataset: EmDataset, told: Told) -> dict[str, Any]:
    """Do the stages that are not done yet, or the one asked for; return the content of metrics.json.

    Returns:
        With a stage before the last, which stage was done and where its files are.

    Raises:
        PartDone: this process has a part of the sections (`share`), and they are encoded.
        ConfigError: settings make no sense, a stage before the one asked for is not done, another process is at
            work here, or a library is missing.
        VolumeError: sections cannot be read or make no sense.
        EncoderError: the encoder is not to be had.
    """
    layout = EmLayout(RunFolder(request.run), dataset.name, request.label)
    _check(request, layout)
    if share.current() is not None:
        _encode_sections(Experiment(request, dataset, layout, StageRows(layout), told))
    claim = try_claim(layout.run.claim_path("em", f"{dataset.name}/{request.label}"))
    if claim is None:
        raise ConfigError(
            f"Segmenting into {layout.results}: another process is at work there. Wait, or give --as NAME."
        )
    try:
        tell_of_memory(request, dataset, told.say)
        return _stages(Experiment(request, dataset, layout, StageRows(layout), told))
    finally:
        claim.release()


def _encode_sections(experiment: Experiment) -> None:
    """Encode the sections, which is what can be shared, and end this process's part."""
    from wsi_dino.segmentation.neurons.affinity_learners import make_learner
    from wsi_dino.segmentation.neurons.affinity_stage import prepare_sections

    learner = make_learner(experiment.request, experiment.layout, experiment.told.advance)
    prepare_sections(experiment, learner, {source.name: source.read_raw() for source in experiment.dataset.subsets})
    share.end_part("em sections", [])


def _check(request: EmRequest, layout: EmLayout) -> None:
    check_scoring(request.agglomeration.scoring)
    check_thresholds(request.agglomeration.thresholds)
    require("skimage.segmentation", "scikit-image")
    require("waterz", "waterz")
    if request.with_zarr or layout.zarr.exists():
        require("zarr", "zarr")


def tell_of_memory(request: EmRequest, dataset: EmDataset, say: Callable[[str], None]) -> None:
    """Say before anything is done what `--fragments edges`, which takes a volume whole, needs for a large one."""
    largest = max(math.prod(source.shape) for source in (dataset.val, dataset.test))
    if request.fragments.method == "edges" and largest > MOST_VOXELS_AT_ONCE:
        gib = [round(largest * of_voxel / 2**30) for of_voxel in EDGE_BYTES]
        size = f"{largest / 1e6:.0f} million voxels"
        say(f"--fragments edges takes a volume whole: {size} need about {gib[0]} to {gib[1]} GiB of memory")


def _stages(experiment: Experiment) -> dict[str, Any]:
    from wsi_dino.segmentation.neurons.affinity_learners import make_learner
    from wsi_dino.segmentation.neurons.affinity_stage import make_affinities

    request, rows = experiment.request, experiment.rows
    learner = make_learner(request, experiment.layout, experiment.told.advance)
    keys = {"affinities": affinity_key(experiment, learner.identity())}
    keys["fragments"] = experiment.key("fragments", keys["affinities"])
    keys["agglomerate"] = experiment.key("agglomerate", keys["fragments"])
    work = {
        "affinities": lambda: make_affinities(experiment, learner, keys["affinities"]),
        "fragments": lambda: make_fragments(experiment, keys["fragments"]),
        "agglomerate": lambda: join_fragments(experiment, keys["agglomerate"]),
    }
    done: dict[str, dict[str, Any]] = {}
    for stage in STAGES[:3]:
        if request.stage in (None, stage):
            done[stage] = work[stage]()
        else:
            done[stage] = rows.require(stage, keys[stage], request.stage)
        if request.stage == stage:
            return {"stage": stage, "folder": experiment.layout.results, "cpu_s": done[stage]["cpu_s"]}
    from wsi_dino.segmentation.neurons.evaluation_stage import evaluate

    options = request.optimistic, experiment.writes_zarr, request.with_floors
    return evaluate(experiment, learner, done, fingerprint(keys["agglomerate"], *options))
