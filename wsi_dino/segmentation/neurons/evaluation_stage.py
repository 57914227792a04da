"""The last stage: the threshold from validation, figures of the test, the segmentation, the report."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.provenance import environment, fingerprint, write_json_atomically, write_text_atomically
from wsi_dino.segmentation.neurons.affinity_learners import AffinityLearner
from wsi_dino.segmentation.neurons.curve import best_row, row_at
from wsi_dino.segmentation.neurons.floors import compute_floors
from wsi_dino.segmentation.neurons.report import ReportInput, render_report
from wsi_dino.segmentation.neurons.stages import FRAGMENTS, Experiment, attributes_of, score
from wsi_dino.segmentation.neurons.volume_files import read_merges, read_volume, write_segmentation, write_zarr

Row = Mapping[str, Any]
_CURVE = ("subset", "threshold", "voi_split", "voi_merge", "voi", "arand", "n_segments")


def evaluate(experiment: Experiment, learner: AffinityLearner, done: Mapping[str, Row], key: str) -> dict[str, Any]:
    """Return the content of metrics.json, computed and written if it is not there."""
    results = experiment.layout.results
    outputs = [results / "metrics.json", results / "segmentation.h5", results / "curve.csv"]
    if experiment.writes_zarr:
        outputs.append(experiment.layout.zarr / ".zarray")
    experiment.rows.do("evaluate", key, outputs, lambda: _work(experiment, done))
    metrics: dict[str, Any] = json.loads(outputs[0].read_text(encoding="utf-8"))
    # other results of the run may be new, and the report compares with them
    html = render_report(ReportInput(experiment, learner, metrics, done, _others(experiment)))
    write_text_atomically(results / "report.html", html)
    return metrics


def _work(experiment: Experiment, done: Mapping[str, Row]) -> dict[str, Any]:
    began = time.process_time()
    layout, dataset = experiment.layout, experiment.dataset
    validation = score(experiment, dataset.val)
    test = score(experiment, dataset.test)
    threshold = best_row(validation)["threshold"]
    chosen = row_at(test, threshold)
    _write_results(experiment, threshold)
    _write_curve(layout.results / "curve.csv", validation, test)
    floors = _floors(experiment) if experiment.request.with_floors else {}
    optimistic = {"best_on_test": {**best_row(test), "note": "chosen on the test labels"}}
    metrics = {
        "voi_split": chosen["voi_split"], "voi_merge": chosen["voi_merge"], "voi": chosen["voi"],
        "arand": chosen["arand"], "threshold": threshold, "curve": test, "validation_curve": validation,
        "n_segments": chosen["n_segments"], **(optimistic if experiment.request.optimistic else {}),
        "floors": floors, "protocol": _protocol(experiment, done),
        "cpu_s": {
            **done["affinities"]["cpu_s"], "fragments": done["fragments"]["cpu_s"],
            "agglomeration": done["agglomerate"]["cpu_s"], "evaluation": round(time.process_time() - began, 2),
        },
        "environment": environment("scipy", "scikit-image", "waterz"),
    }  # fmt: skip
    write_json_atomically(layout.results / "metrics.json", metrics)
    return {"cpu_s": metrics["cpu_s"]}


def _protocol(experiment: Experiment, done: Mapping[str, Row]) -> dict[str, Any]:
    request, dataset, row = experiment.request, experiment.dataset, done["affinities"]
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "encoder": request.encoder,
        "supervised": request.is_supervised,
        "model": row["facts"],
        "parameters": row["parameters"],
        "affinities": request.affinities.model_dump(mode="json"),
        "fragments": request.fragments.model_dump(mode="json"),
        "agglomeration": request.agglomeration.model_dump(mode="json"),
        "n_fragments": done["fragments"]["n_fragments"],
        "precision": row["precision"],
        "shapes": {source.name: list(source.shape) for source in dataset.subsets},
        "resolution_nm": dataset.test.resolution_nm,
        "threshold_from": "least VOI on validation sections",
        "figures": "VOI in bits, split = H(segments | truth); adapted Rand error over pairs; true id 0 not counted",
        "remarks": row["remarks"],
    }


def _write_results(experiment: Experiment, threshold: float) -> None:
    layout, test = experiment.layout, experiment.dataset.test
    fragments = read_volume(layout.fragments(test.name), FRAGMENTS)
    merges = read_merges(layout.merges(test.name))
    segments = merges.segments[merges.thresholds.index(threshold)]
    attributes = {**attributes_of(test), "threshold": threshold}
    write_segmentation(layout.results / "segmentation.h5", fragments, segments, attributes)
    if experiment.writes_zarr:
        write_zarr(layout.zarr, fragments, segments, attributes)


def _write_curve(path: Path, validation: Sequence[Row], test: Sequence[Row]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _CURVE, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"subset": "val", **row} for row in validation)
    writer.writerows({"subset": "test", **row} for row in test)
    write_text_atomically(path, buffer.getvalue())


def _floors(experiment: Experiment) -> dict[str, Any]:
    """Return the floors of the dataset, which all of its results share."""
    request, run = experiment.request, experiment.layout.run
    key = fingerprint([s.fingerprint() for s in experiment.judged], request.fragments, request.agglomeration)
    stage = f"em-floors/{experiment.dataset.name}"
    row = run.read_row(stage, key)
    if row is None:
        experiment.told.say("floors: grey values as affinities, one segment, the truth's own affinities")
        row = compute_floors(*experiment.judged, request.fragments, request.agglomeration)
        run.write_row(stage, key, row)
    return row


def _others(experiment: Experiment) -> list[dict[str, Any]]:
    """Return the metrics of all results on the same dataset and test sections in this run, by VOI."""
    found = []
    for path in sorted(experiment.layout.data.glob("*/metrics.json")):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            if metrics["protocol"]["split"] == experiment.dataset.split and np.isfinite(metrics["voi"]):
                found.append({**metrics, "label": path.parent.name})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda metrics: metrics["voi"])
