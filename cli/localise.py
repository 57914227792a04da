"""`wsi-dino localise`: does a finished task point at what was annotated? FROC and pointing game."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.heatmap import FolderArgument, FoldOption, HeatmapKind, TestRunOption
from wsi_dino.cli.options import Device, DeviceOption, JsonOption
from wsi_dino.cli.run_pictures import footprint_of
from wsi_dino.errors import ConfigError, SlideError, StorageError, WsiDinoError

if TYPE_CHECKING:
    import numpy as np

    from wsi_dino.evaluation.froc import Detections
    from wsi_dino.evaluation.pointing_game import Pointing
    from wsi_dino.mil.finished_task import FinishedTask

_SHOWN = 10


class CountIn(StrEnum):
    """Whose false positives count."""

    normal = "normal"
    all = "all"


_RadiusOption = Annotated[
    float | None,
    typer.Option(
        "--radius-um", min=0.0, show_default=False,
        help="No second detection within this distance of a better one.  [default: 1.5 tiles]",
    ),
]  # fmt: skip
_MaskOption = Annotated[
    float, typer.Option("--mask-mpp", min=2.0, help="um/px at which lesions are compared with detections.")
]
_CountOption = Annotated[
    CountIn, typer.Option("--count-in", help="Slides whose false positives count: normal ones or all.")
]


def localise(
    results: FolderArgument,
    annotations: Annotated[
        Path,
        typer.Option("--annotations", help="Folder of SLIDE.xml (ASAP, as Camelyon16's) or SLIDE.geojson (QuPath).",
                     show_default=False),
    ],
    kind: Annotated[
        HeatmapKind, typer.Option("--kind", help="What points: probability of each tile alone, or attention.")
    ] = HeatmapKind.probability,
    of_class: Annotated[
        str | None,
        typer.Option("--class", help="Class of the annotated regions.  [default: the last, of two the positive one]",
                     show_default=False),
    ] = None,
    radius_um: _RadiusOption = None,
    mask_mpp: _MaskOption = 7.776,
    count_in: _CountOption = CountIn.normal,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="Slide that takes no part, e.g. one that is not annotated in full; may be "
                     "repeated.", show_default=False),
    ] = None,
    fold: FoldOption = None,
    test_run: TestRunOption = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Compare where held-out slides light up with annotated regions.

    FROC by Camelyon16's definition (mean sensitivity at 1/4, 1/2, 1, 2, 4, 8 false positives a slide) and the
    pointing game. Slides without annotations count as normal where their label is the other class, else they
    are left out and named. Writes RESULTS/localisation/KIND/: localisation.json, detections.csv, froc.svg, froc.png.
    Exit code 1 when a slide could not be used.
    """
    from wsi_dino.cli.mil import resolve_mil_device
    from wsi_dino.evaluation.localisation_files import write_localisation
    from wsi_dino.mil.finished_task import FinishedTask
    from wsi_dino.pathology.annotations import find_annotations

    task = FinishedTask(results, test_run=test_run, fold=fold, device=resolve_mil_device(str(device)))
    request = _Request(str(kind), task.class_index(of_class), radius_um, mask_mpp)
    found = find_annotations(annotations)
    looked = _look_at_all(task, request, found, set(leave_out or []))
    content = _content(task, request, looked, str(count_in))
    folder = task.folder / "localisation" / str(kind)
    files = write_localisation(folder, content, looked.detection_rows)
    n_failed = len(looked.failed)
    if as_json:
        head = {"command": "localise", "results": str(results), "n_failed": n_failed, "files": list(map(str, files))}
        console.print_json({**head, **content})
    else:
        _print(content, folder)
    console.leave(n_failed)


@dataclass(frozen=True)
class _Request:
    """What points at what."""

    kind: str
    class_index: int
    radius_um: float | None
    mask_mpp: float


@dataclass(frozen=True)
class _Looked:
    """What came of all slides."""

    slides: list[Detections]
    pointings: list[Pointing]
    detection_rows: list[dict[str, Any]]
    left_out: dict[str, str]
    failed: dict[str, str]
    n_itc: int


def _look_at_all(task: FinishedTask, request: _Request, annotations: dict[str, Path], leave_out: set[str]) -> _Looked:
    looked = _Looked([], [], [], {}, {}, 0)
    n_itc = 0
    with console.progress("localise", total=len(task.rows)) as progress:
        for slide_id in sorted(task.rows):
            why = _why_left_out(task, request, slide_id, annotations, leave_out)
            if why:
                looked.left_out[slide_id] = why
            else:
                n_itc += _look_at(task, request, slide_id, annotations.get(slide_id), looked)
            progress(1, text=slide_id)
    unknown = sorted((set(annotations) | leave_out) - set(task.rows))
    if unknown:
        console.say(f"note: no model here was tested on {len(unknown)} of the slides named: {', '.join(unknown[:5])}")
    if not looked.slides:
        some = [f"{slide_id} is {why}" for slide_id, why in {**looked.left_out, **looked.failed}.items()][:2]
        name, known = task.classes[request.class_index], ", ".join(task.classes)
        raise ConfigError(
            f"Localising {name}: no slide of {task.folder} can be used ({'; '.join(some)}). --class names the "
            f"annotated class: {known}."
        )
    return _Looked(looked.slides, looked.pointings, looked.detection_rows, looked.left_out, looked.failed, n_itc)


def _why_left_out(
    task: FinishedTask, request: _Request, slide_id: str, annotations: dict[str, Path], leave_out: set[str]
) -> str:
    if slide_id in leave_out:
        return "asked for"
    row = task.rows[slide_id]
    is_annotated_class = int(row["label"]) == request.class_index
    if slide_id in annotations and not is_annotated_class:
        return f"annotated, but labelled {row['target']}"
    return f"labelled {row['target']}, but not annotated" if slide_id not in annotations and is_annotated_class else ""


def _look_at(task: FinishedTask, request: _Request, slide_id: str, annotation: Path | None, looked: _Looked) -> int:
    """Add one slide to what was seen; return how many of its lesions are isolated tumour cells."""
    try:
        seen = _see(task, request, slide_id, annotation)
    except StorageError:
        raise
    except WsiDinoError as error:
        looked.failed[slide_id] = str(error)
        return 0
    looked.slides.append(seen.detections)
    looked.detection_rows.extend(seen.rows)
    if seen.pointing is not None:
        looked.pointings.append(seen.pointing)
    return seen.n_itc


@dataclass(frozen=True)
class _Seen:
    """What came of one slide."""

    detections: Detections
    rows: list[dict[str, Any]]
    pointing: Pointing | None
    n_itc: int


def _see(task: FinishedTask, request: _Request, slide_id: str, annotation: Path | None) -> _Seen:
    import numpy as np

    from wsi_dino.evaluation.detections import suppress_neighbours
    from wsi_dino.evaluation.froc import Detections
    from wsi_dino.pathology.lesion_map import lesion_map

    attention = task.attention(slide_id)
    footprint = np.array(footprint_of(attention))
    mpp_xy, slide_wh = _place(task, slide_id)
    scores, values = _scores(task, request, slide_id)
    centres = attention.coords + footprint / 2
    centres_um = centres * mpp_xy
    radius_um = request.radius_um if request.radius_um is not None else 1.5 * float(max(footprint * mpp_xy))
    kept = suppress_neighbours(values, centres_um, radius_um)
    truth = lesion_map(annotation, slide_wh, mpp_xy, request.mask_mpp)
    hits = truth.lesions.at(centres_um[kept])
    detections = Detections(slide_id, scores[kept], hits, truth.lesions.n_to_find, annotation is None)
    pointing = None
    if annotation is not None:
        pointing = truth.point(slide_id, values, attention.coords, (int(footprint[0]), int(footprint[1])))
    rows = [
        {"slide_id": slide_id, "x": int(x), "y": int(y), "score": float(score), "hit": int(hit)}
        for (x, y), score, hit in zip(centres[kept], scores[kept], hits, strict=True)
    ]
    return _Seen(detections, rows, pointing, int(truth.lesions.is_itc.sum()))


def _scores(task: FinishedTask, request: _Request, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each tile as a detection, comparable between slides, and what orders them within one."""
    if request.kind == "probability":
        probability = task.tile_probabilities(slide_id)[:, request.class_index]
        return probability, probability
    weights = task.attention(slide_id).attention_weights.astype(float)
    score = float(task.rows[slide_id][f"score_{task.classes[request.class_index]}"])
    return weights / weights.max() * score, weights


def _place(task: FinishedTask, slide_id: str) -> tuple[tuple[float, float], tuple[int, int]]:
    """Return um/px and size of a slide as it was tiled."""
    from wsi_dino.errors import TileGridError
    from wsi_dino.pathology.tile_grid import read_tile_grid

    for run in task.runs:
        try:
            grid = read_tile_grid(run.tiles / f"{slide_id}.h5")
        except TileGridError:
            continue
        if grid.mpp_xy is not None:
            return grid.mpp_xy, grid.slide_wh_level0
    raise SlideError(f"Localising in {slide_id}: its tile file, which says its size and um/px, is not in the run.")


def _content(task: FinishedTask, request: _Request, looked: _Looked, counted: str) -> dict[str, Any]:
    from wsi_dino.evaluation.froc import ITC_UM, MERGE_UM, compute_froc
    from wsi_dino.evaluation.pointing_game import summarise_pointing

    try:
        froc = compute_froc(looked.slides, counted=counted)  # type: ignore[arg-type]
    except ConfigError as error:
        froc = {"score": None, "note": str(error)}
    return {
        "task": task.metrics["task"], "encoder": task.metrics["encoder"], "kind": request.kind,
        "class": task.classes[request.class_index],
        "froc": {
            **froc,
            "n_isolated_tumour_cells": looked.n_itc, "mask_mpp": request.mask_mpp, "merge_um": MERGE_UM,
            "itc_um": ITC_UM, "radius_um": request.radius_um or "1.5 tiles",
        },
        "pointing_game": summarise_pointing(looked.pointings),
        "left_out": looked.left_out, "failed": looked.failed,
    }  # fmt: skip


def _print(content: dict[str, Any], folder: Path) -> None:
    froc, game = content["froc"], content["pointing_game"]
    print(f"{content['task']} from {content['encoder']}, {content['kind']}, class {content['class']}")
    if froc["score"] is None:
        print(f"no FROC: {froc['note']}")
    else:
        _print_froc(froc)
    print(
        f"Pointing game: {game['n_hits']:g} of {game['n_slides']} slides ({game['accuracy']:.3f}, 95 % "
        f"{game['low']:.3f} to {game['high']:.3f}; pointing anywhere: {game['chance']:.3f})"
    )
    for what in ("left_out", "failed"):
        _print_some(what.replace("_", " "), content[what])
    print(f"files: {folder}")


def _print_froc(froc: dict[str, Any]) -> None:
    print(
        f"FROC score {froc['score']:.3f}: {froc['n_lesions']} lesions (and {froc['n_isolated_tumour_cells']} groups of "
        f"isolated tumour cells, not counted), false positives of {froc['n_counted']} {_whose(froc['counted'])}slides"
    )
    names = [f"{rate:g}" for rate in froc["false_positives"]]
    row = dict(zip(names, froc["sensitivity"], strict=True))
    console.print_table([{"false positives a slide": "sensitivity", **row}], ["false positives a slide", *names])


def _whose(counted: str) -> str:
    return "normal " if counted == "normal" else ""


def _print_some(what: str, reasons: dict[str, str]) -> None:
    some: Sequence[tuple[str, str]] = list(reasons.items())[:_SHOWN]
    for slide_id, why in some:
        print(f"{what}: {slide_id}: {why}")
    if len(reasons) > len(some):
        print(f"{what}: and {len(reasons) - len(some)} more (all of them with --json)")
