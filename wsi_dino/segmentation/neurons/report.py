"""The report of an experiment on neurons: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from wsi_dino.errors import VolumeError
from wsi_dino.evaluation.pictures import MARKERS, SERIES, Picture, picture_uri
from wsi_dino.evaluation.published.volume_tables import volume_tables
from wsi_dino.segmentation.feature_stack import Box
from wsi_dino.segmentation.neurons.affinity_learners import AffinityLearner, MapLearner, epoch_steps
from wsi_dino.segmentation.neurons.pictures import middle, section_pictures
from wsi_dino.segmentation.neurons.section_maps import SectionMaps
from wsi_dino.segmentation.neurons.stages import AFFINITIES, FRAGMENTS, Experiment
from wsi_dino.segmentation.neurons.volume_files import read_merges, read_section
from wsi_dino.segmentation.overlays import enlarged, principal_colours

_SHOWN_SECTIONS = 3
_PRINTED_AS = {"cremi-a": "CREMI-A", "cremi-b": "CREMI-B", "cremi-c": "CREMI-C", "ac34": "AC3/4", "wafer4": "Wafer4"}
_PRINTED_FIGURES = {"voi_split": "voi_split", "voi_merge": "voi_merge", "voi_sum": "voi", "arand": "arand"}
_CURVES = {"voi": "VOI", "voi_split": "VOI split", "voi_merge": "VOI merge", "arand": "ARAND"}


@dataclass(frozen=True)
class ReportInput:
    """What the page is made of.

    Attributes:
        experiment: whose results these are.
        learner: of affinities.
        metrics: content of metrics.json.
        done: rows of the stages.
        others: metrics of all results on the same sections in this run, with ``label``, by VOI.
    """

    experiment: Experiment
    learner: AffinityLearner
    metrics: Mapping[str, Any]
    done: Mapping[str, Mapping[str, Any]]
    others: Sequence[Mapping[str, Any]]


def render_report(given: ReportInput) -> str:
    """Return the report as one HTML page: no script, no network, every text escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "uri": picture_uri}
    package = resources.files("wsi_dino.segmentation.neurons")
    source = package.joinpath("report.html.jinja").read_text(encoding="utf-8")
    pictures = [_curve_picture(given.metrics), _loss_picture(given)]
    if len(given.others) > 1:
        pictures.append(_study_picture(given.others))
    return environment.from_string(source).render(
        metrics=given.metrics,
        figures=[Markup(picture.page_svg()) for picture in pictures],
        captions=[picture.label for picture in pictures],
        sections=_sections(given),
        features=_features(given),
        others=[_study_row(other) for other in given.others],
        published=_published(given.metrics),
        names={"voi_sum": "VOI", **_CURVES, "arand": "ARAND"},
        label=given.experiment.layout.label,
        settings=_settings(given.metrics),
    )


def _curve_picture(metrics: Mapping[str, Any]) -> Picture:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, (key, name) in enumerate(_CURVES.items()):
            points = [(row["threshold"], row[key]) for row in metrics["curve"]]
            axes.plot(*zip(*points, strict=True), color=SERIES[place], marker=MARKERS[place], markersize=3, label=name)
        chosen = [(row["threshold"], row["voi"]) for row in metrics["validation_curve"]]
        axes.plot(*zip(*chosen, strict=True), color="#5b6570", linestyle="--", label="VOI, validation")
        axes.axvline(metrics["threshold"], color="#5b6570", linewidth=0.8)
        axes.set_xlabel("threshold on 1 - affinity")
        axes.set_ylim(bottom=0)
        axes.legend()

    return Picture("curve", "Figures of the test at every threshold; the line is the threshold that validation chose.",
                   (5.4, 3.4), draw)  # fmt: skip


def _loss_picture(given: ReportInput) -> Picture:
    history = given.done["affinities"]["history"]
    n_steps = epoch_steps(given.experiment.request.affinities)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        steps = [(row["epoch"] + 1) * n_steps for row in history]
        axes.plot(steps, [row["loss"] for row in history], color=SERIES[0], marker="o", markersize=3)
        axes.set_xlabel("steps")
        axes.set_xlim(left=0)
        axes.set_ylabel("weighted squared error")
        axes.set_ylim(bottom=0)

    return Picture("loss", "Loss of training.", (5.4, 3.4), draw)


def _study_picture(others: Sequence[Mapping[str, Any]]) -> Picture:
    names = [other["label"] for other in others]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        splits, merges = ([other[key] for other in others] for key in ("voi_split", "voi_merge"))
        axes.barh(names, splits, color=SERIES[0], label="VOI split")
        axes.barh(names, merges, left=splits, color=SERIES[1], label="VOI merge")
        floor = others[0]["floors"].get("raw-intensity")
        if floor:
            axes.axvline(floor["voi"], color="#1b1f24", linestyle="--", linewidth=1, label="grey values, VOI")
        axes.invert_yaxis()
        axes.set_xlabel("bits, on the test sections")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)

    size = 7.4, 1.6 + 0.4 * len(names)
    return Picture("study", "VOI against encoder, up-scaling, layers and decoder: all results of this run.", size, draw)


def _study_row(other: Mapping[str, Any]) -> dict[str, Any]:
    protocol = other["protocol"]
    model, spec = protocol["model"], protocol["affinities"]
    frozen = {
        "upscale": f"x{spec['upscale']}", "layers": ", ".join(map(str, model.get("layers", []))),
        "cell": min(model.get("cell_voxels", [1])),
        "decoder": spec["decoder"] + (" + image" if spec["image_skip"] else ""),
    }  # fmt: skip
    supervised = {"upscale": "–", "layers": "–", "cell": 1, "decoder": "learnt from voxels"}
    minutes = sum(other["cpu_s"].values()) / 60
    return {**other, **(supervised if protocol["supervised"] else frozen), "encoder": protocol["encoder"],
            "minutes": minutes}  # fmt: skip


def _published(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the paper's tables of this dataset with our figures in their columns; none for files of one's own."""
    tables = volume_tables(_PRINTED_AS.get(metrics["protocol"]["dataset"], "-"))
    return [
        {**table, "ours": [metrics[_PRINTED_FIGURES[column["metric"]]] for column in table["columns"]]}
        for table in tables
    ]


def _sections(given: ReportInput) -> list[dict[str, Any]]:
    experiment, metrics = given.experiment, given.metrics
    layout, test = experiment.layout, experiment.dataset.test
    raw, truth = test.read_raw().voxels, test.read_labels()
    merges = read_merges(layout.merges(test.name))
    lookup = merges.segments[merges.thresholds.index(metrics["threshold"])]
    found = []
    for z in _spread(test.shape[0]):
        segments = lookup[read_section(layout.fragments(test.name), FRAGMENTS, z)]
        affinities = read_section(layout.affinities(test.name), AFFINITIES, z)
        pictures = section_pictures(raw[z], affinities, segments, truth[z])
        found.append({"number": z + test.sections[0], **vars(pictures)})
    return found


def _spread(n_sections: int) -> list[int]:
    return sorted({round((i + 0.5) * n_sections / _SHOWN_SECTIONS - 0.5) for i in range(_SHOWN_SECTIONS)})


def _features(given: ReportInput) -> list[dict[str, Any]]:
    """Return the middle of one test section as each layer sees it."""
    learner = given.learner
    if not isinstance(learner, MapLearner):
        return []
    source = given.experiment.dataset.test
    folder = given.experiment.layout.maps(learner.key, source.name, "as-is")
    maps = SectionMaps(folder, source.shape[0], learner.plan.geometry(source.shape[1:]), learner.plan.layers)
    z, (ys, xs) = source.shape[0] // 2, middle(source.shape)
    row_cells, col_cells = maps.geometry.row_positions()[ys], maps.geometry.col_positions()[xs]
    box = Box((z, z + 1), _cells(row_cells), _cells(col_cells))
    try:
        crop = maps.crop(box)
    except VolumeError:  # maps were removed to save space: the page is whole without them
        return []
    numbers = learner.encoder.layer_numbers
    return [
        {
            "name": f"layer {number}: a cell is {layer.stride_px / learner.plan.upscale:g} voxels",
            "picture": enlarged(principal_colours(item[0, :, 0].numpy()), (1, 1)),
        }
        for number, layer, item in zip(numbers, learner.plan.layers, crop.maps, strict=True)
    ]


def _cells(positions: np.ndarray) -> tuple[int, int]:
    return int(positions[0]), int(np.ceil(positions[-1]))


def _settings(metrics: Mapping[str, Any]) -> dict[str, str]:
    protocol = metrics["protocol"]
    of_maps = {"upscale", "tile_px", "layers", "decoder", "image_skip", "n_views"} if protocol["supervised"] else set()
    spec = {key: value for key, value in protocol["affinities"].items() if value is not None and key not in of_maps}
    return {
        "split": protocol["split"],
        "shapes": ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in protocol["shapes"].items()),
        "model": ", ".join(f"{key} {value}" for key, value in protocol["model"].items()),
        "affinities": ", ".join(f"{key} {value}" for key, value in spec.items()),
        "fragments": f"{protocol['fragments']['method']}, {protocol['n_fragments']['test']} in the test",
        "agglomeration": f"waterz, {protocol['agglomeration']['scoring']}",
        "threshold": protocol["threshold_from"],
        "figures": protocol["figures"],
        "CPU seconds": ", ".join(f"{name} {seconds:.0f}" for name, seconds in metrics["cpu_s"].items()),
    }


def _number(value: Any) -> str:
    if value is None or not isinstance(value, int | float) or not np.isfinite(value):
        return "–"
    return f"{value:.3f}"
