"""The four stages of an experiment on neurons, each resumed by the fingerprint of all that decides it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.provenance import fingerprint
from wsi_dino.segmentation.neurons.agglomeration import agglomerate_volume
from wsi_dino.segmentation.neurons.curve import count_fragments, curve_of
from wsi_dino.segmentation.neurons.datasets import EmDataset
from wsi_dino.segmentation.neurons.em_volume import EmSource
from wsi_dino.segmentation.neurons.fragments import edge_fragments, section_fragments
from wsi_dino.segmentation.neurons.layout import EmLayout, StageRows
from wsi_dino.segmentation.neurons.request import EmRequest, Stage
from wsi_dino.segmentation.neurons.volume_files import (
    read_merges,
    read_section,
    read_volume,
    write_merges,
    writing_volume,
)

AFFINITIES, FRAGMENTS = "affinities", "main"
_VERSION = 1  # of what stages compute from the same request


@dataclass(frozen=True)
class Told:
    """How a run tells what it does: a sentence; the begin of a step of so many parts; a part done."""

    say: Callable[[str], None]
    begin: Callable[[str, int], None]
    advance: Callable[[], None]


@dataclass(frozen=True)
class Experiment:
    """What is asked, of which data, kept where."""

    request: EmRequest
    dataset: EmDataset
    layout: EmLayout
    rows: StageRows
    told: Told

    @property
    def judged(self) -> tuple[EmSource, EmSource]:
        """Validation and test."""
        return self.dataset.val, self.dataset.test

    @property
    def writes_zarr(self) -> bool:
        """Whether the segmentation is written as Zarr: asked for, or there from before, where it must not be stale."""
        return self.request.with_zarr or self.layout.zarr.exists()

    def key(self, stage: Stage, before: str) -> str:
        """Return the fingerprint of a stage, given that of the one before."""
        spec: Any = {"fragments": self.request.fragments, "agglomerate": self.request.agglomeration}.get(stage)
        return fingerprint(_VERSION, stage, before, spec)


def affinity_key(experiment: Experiment, identity: Any) -> str:
    """Return the fingerprint of the affinities: volumes, what learns from them, and how."""
    sources = [source.fingerprint() for source in experiment.dataset.subsets]
    return fingerprint(_VERSION, sources, identity, experiment.request.affinities)


def make_fragments(experiment: Experiment, key: str) -> dict[str, Any]:
    """Make the fragments of validation and test; return the row of the stage."""
    outputs = [experiment.layout.fragments(source.name) for source in experiment.judged]

    def work() -> dict[str, Any]:
        began = time.process_time()
        n_fragments = {source.name: _write_fragments(experiment, source) for source in experiment.judged}
        return {"n_fragments": n_fragments, "cpu_s": round(time.process_time() - began, 2)}

    return experiment.rows.do("fragments", key, outputs, work)


def _write_fragments(experiment: Experiment, source: EmSource) -> int:
    origin, target = experiment.layout.affinities(source.name), experiment.layout.fragments(source.name)
    experiment.told.begin(f"fragments of {source.name}", source.shape[0])
    last = 0
    with writing_volume(target, FRAGMENTS, source.shape, np.uint32, attributes_of(source)) as write:
        if experiment.request.fragments.method == "edges":
            found = edge_fragments(read_volume(origin, AFFINITIES))
            write(0, found)
            return int(found.max())
        for z in range(source.shape[0]):
            section = section_fragments(read_section(origin, AFFINITIES, z), last + 1)
            last = int(section.max())
            write(z, section[None].astype(np.uint32))
            experiment.told.advance()
    return last


def join_fragments(experiment: Experiment, key: str) -> dict[str, Any]:
    """Agglomerate validation and test at all thresholds; return the row of the stage."""
    spec = experiment.request.agglomeration

    def work() -> dict[str, Any]:
        began = time.process_time()
        for source in experiment.judged:
            experiment.told.say(f"joining the fragments of {source.name}")
            section = _sections_of(experiment.layout, source)
            merges = agglomerate_volume(section, source.shape, spec.thresholds, spec.scoring)
            write_merges(experiment.layout.merges(source.name), merges)
        return {"cpu_s": round(time.process_time() - began, 2)}

    outputs = [experiment.layout.merges(source.name) for source in experiment.judged]
    return experiment.rows.do("agglomerate", key, outputs, work)


def _sections_of(layout: EmLayout, source: EmSource) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    affinities, fragments = layout.affinities(source.name), layout.fragments(source.name)
    return lambda z: (read_section(affinities, AFFINITIES, z), read_section(fragments, FRAGMENTS, z))


def score(experiment: Experiment, source: EmSource) -> list[dict[str, Any]]:
    """Return the curve of a subset."""
    fragments = read_volume(experiment.layout.fragments(source.name), FRAGMENTS)
    counts = count_fragments(source.read_labels(), fragments)
    del fragments
    return curve_of(counts, read_merges(experiment.layout.merges(source.name)))


def attributes_of(source: EmSource) -> dict[str, Any]:
    """Return what files of voxels say of themselves; nothing where the source says nothing."""
    return {} if source.resolution_nm is None else {"resolution": list(source.resolution_nm), "unit": "nm"}


def outputs_of(layout: EmLayout, stage: str) -> list[Path]:
    """Return the files of the stage ``affinities``."""
    return [layout.affinities("val"), layout.affinities("test"), layout.results / "model" / f"{stage}.safetensors"]
