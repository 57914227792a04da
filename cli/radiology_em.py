"""`wsi-dino radiology em`: neurons in electron microscopy, from frozen features or voxels."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import (
    CheckpointOption,
    Device,
    DeviceOption,
    JsonOption,
    RandomWeightsOption,
    WeightsDirOption,
    WorkersOption,
)
from wsi_dino.cli.options import panel_option as _option
from wsi_dino.cli.radiology_segment import DecoderOption, Told, _layers
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.segmentation.neurons.datasets import EmDataset
    from wsi_dino.segmentation.neurons.request import EmRequest

_DATA, _FEATURES, _TRAINING = "Volumes", "Sections and features", "Training"
_JOINING, _RESULTS = "Fragments and agglomeration", "Results"
_TOLD = ("voi_split", "voi_merge", "voi", "arand", "threshold", "curve", "best_on_test")
_OPTIONS = {"tile_px": "size", "learning_rate": "lr", "n_views": "views"}  # where the request has another word
_SHOWN = ["", "voi_split", "voi_merge", "voi", "arand"]


class StageName(StrEnum):
    """Stages."""

    affinities = "affinities"
    fragments = "fragments"
    agglomerate = "agglomerate"
    evaluate = "evaluate"


class FragmentMethod(StrEnum):
    """Ways to fragments."""

    sections = "sections"
    edges = "edges"


class Ac3End(StrEnum):
    """Which sections of AC3 are the test."""

    first = "first"
    last = "last"


def em(
    ctx: typer.Context,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder", show_default=False,
            help="Encoder by name (`wsi-dino encoders` lists them), or unet3d: a 3D U-Net that learns from voxels.",
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="cremi-a|cremi-b|cremi-c|ac34|wafer4", show_default=False,
            help="A published dataset below --root, or the four files of your own.",
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Folder of the dataset.", show_default=False)] = None,
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")] = Path("wsi-dino-run"),
    stage: Annotated[
        StageName | None,
        typer.Option("--stage", help="Do this stage alone; those before it must be done.  [default: all that is not "
                     "done]", show_default=False),
    ] = None,
    train_image: Annotated[
        str | None,
        _option(_DATA, "--train-image", metavar="FILE[:KEY]",
                help="Raw volume to learn from: HDF5, a TIFF stack, or a folder of numbered sections."),
    ] = None,
    train_labels: Annotated[
        str | None, _option(_DATA, "--train-labels", metavar="FILE[:KEY]", help="Its neuron ids; 0 is no neuron.")
    ] = None,
    test_image: Annotated[
        str | None, _option(_DATA, "--test-image", metavar="FILE[:KEY]", help="Raw volume to be judged on.")
    ] = None,
    test_labels: Annotated[
        str | None, _option(_DATA, "--test-labels", metavar="FILE[:KEY]", help="Its neuron ids.")
    ] = None,
    name: Annotated[str, _option(_DATA, "--name", help="Of your own files' results.  [default: volumes]")] = "volumes",
    val_sections: Annotated[
        int | None,
        _option(_DATA, "--val-sections", min=1,
                help="Last sections of the training volume, which choose the threshold.  [default: a fifth; AC4's 20]"),
    ] = None,
    ac3_sections: Annotated[
        Ac3End, _option(_DATA, "--ac3-sections", help="The first or the last 100 of AC3.  [default: first]")
    ] = Ac3End.first,
    repair: Annotated[
        bool, _option(_DATA, "--repair", help="Replace blank sections by the mean of their neighbours.")
    ] = False,
    weights: CheckpointOption = None,
    weights_dir: WeightsDirOption = None,
    random_weights: RandomWeightsOption = None,
    upscale: Annotated[
        int, _option(_FEATURES, "--upscale", metavar="1|2|4", help="Enlarge sections so many times.  [default: 4]")
    ] = 4,
    size: Annotated[
        int, _option(_FEATURES, "--size", min=32, help="Side of the tiles the encoder sees, px.  [default: 448]")
    ] = 448,
    layers: Annotated[
        str | None,
        _option(_FEATURES, "--layers", metavar="N,N", help="Blocks or stages to stack.  [default: the encoder's own]"),
    ] = None,
    decoder: Annotated[
        DecoderOption, _option(_FEATURES, "--decoder", help="As of `radiology segment`.  [default: conv3d]")
    ] = DecoderOption.conv3d,
    image_skip: Annotated[
        bool, _option(_FEATURES, "--image-skip", help="Give the image to the decoder too, at full resolution.")
    ] = False,
    views: Annotated[
        int, _option(_FEATURES, "--views", min=1, max=8, help="Flips and turns of training sections.  [default: 2]")
    ] = 2,
    steps: Annotated[
        int, _option(_TRAINING, "--steps", min=1, help="Windows learnt from, one a step.  [default: 2000]")
    ] = 2000,
    lr: Annotated[
        float,
        _option(_TRAINING, "--lr", help="Rate of Adam, falling by a cosine. The paper's is the default; public code of "
                "the field has 1e-4.  [default: 1e-3]"),
    ] = 1e-3,
    long_range: Annotated[
        bool, _option(_TRAINING, "--long-range", help="Learn nine affinities further away, too.")
    ] = False,
    window_sections: Annotated[
        int, _option(_TRAINING, "--window-sections", min=1, help="Sections seen at once.  [default: 16]")
    ] = 16,
    window_voxels: Annotated[
        int, _option(_TRAINING, "--window-voxels", min=8, help="Voxels a side seen at once.  [default: 96]")
    ] = 96,
    seed: Annotated[int, _option(_TRAINING, "--seed", min=0, help="Of weights and windows.  [default: 0]")] = 0,
    fragments: Annotated[
        FragmentMethod,
        _option(_JOINING, "--fragments", help="sections: watershed in each section (as MALA). edges: waterz's, on "
                "affinities in 3D, for isotropic volumes; takes a volume whole into memory.  [default: sections]"),
    ] = FragmentMethod.sections,
    scoring: Annotated[
        str,
        _option(_JOINING, "--scoring", metavar="mean|quantile-Q|max-quantile-Q",
                help="What stands for the affinities between two segments; max-: between two fragments the greatest, "
                "as public code of the field has it.  [default: max-quantile-50]"),
    ] = "max-quantile-50",
    thresholds: Annotated[
        str | None,
        _option(_JOINING, "--thresholds", metavar="T,T", help="Of 1 - affinity.  [default: 0.05, 0.1 ... 0.95]"),
    ] = None,
    called: Annotated[str, _option(_RESULTS, "--as", help="Name of the results' folder.  [default: by settings]")] = "",
    optimistic: Annotated[
        bool, _option(_RESULTS, "--optimistic", help="Tell the threshold that is best on the test labels, flagged.")
    ] = False,
    zarr: Annotated[bool, _option(_RESULTS, "--zarr", help="Write the segmentation as Zarr, too.")] = False,
    floors: Annotated[
        bool, _option(_RESULTS, "--floors/--no-floors", help="Judge what learns nothing, too.  [default: yes]")
    ] = True,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Segment neurons in serial sections: affinities, fragments, agglomeration, VOI and adapted Rand error.

    Affinities come from a light 3D decoder of a frozen encoder's features, or of a supervised 3D U-Net. The threshold
    is chosen on validation sections. Writes RUN/em/DATASET/NAME/: report.html, metrics.json, curve.csv,
    segmentation.h5 (key main). Run again, it does only what is missing or asked for differently. Needs the extra em.
    """
    from wsi_dino.segmentation.neurons.run import segment_neurons
    from wsi_dino.segmentation.neurons.stages import Told as Steps

    # ctx.params holds paths as text
    given = {**ctx.params, "run": run, "root": root, "weights": weights, "weights_dir": weights_dir}
    request = _request(given)
    reporter = Told()
    told = Steps(reporter.say, reporter.begin, reporter.advance)
    metrics = segment_neurons(request, _dataset(given), told)
    if as_json:
        console.print_json({key: metrics[key] for key in _TOLD if key in metrics} if "voi" in metrics else metrics)
    elif "voi" in metrics:
        _print(metrics)
    else:
        console.say(f"stage {metrics['stage']} done in {metrics['folder']}")


def _dataset(given: dict[str, Any]) -> EmDataset:
    from wsi_dino.segmentation.neurons.datasets import open_dataset, open_files

    files = {key: given[key] for key in ("train_image", "train_labels", "test_image", "test_labels")}
    options = {"n_val": given["val_sections"], "repair": given["repair"]}
    if given["dataset"] is not None:
        if any(files.values()) or given["root"] is None:
            raise ConfigError(f"--dataset {given['dataset']}: give --root DIR beside it, and no files of your own.")
        return open_dataset(given["dataset"], given["root"], ac3_end=given["ac3_sections"], **options)
    if given["root"] is not None:
        raise ConfigError(f"--root {given['root']}: name its --dataset, or leave --root out beside files of your own.")
    missing = [f"--{key.replace('_', '-')}" for key, value in files.items() if value is None]
    if missing:
        raise ConfigError(f"Name --dataset and --root, or all four files; missing: {', '.join(missing)}.")
    if not given["name"]:
        raise ConfigError("--name is empty; leave it out, or name the folder of the results.")
    train, test = (files["train_image"], files["train_labels"]), (files["test_image"], files["test_labels"])
    return open_files(train, test, name=given["name"], **options)


def _request(given: dict[str, Any]) -> EmRequest:
    from pydantic import ValidationError

    from wsi_dino.segmentation.neurons.request import AffinitySpec, AgglomerationSpec, EmRequest, FragmentSpec

    settings = {key: given[key] for key in ("weights", "weights_dir", "random_weights") if given[key] is not None}
    joining = {"scoring": given["scoring"]}
    if given["thresholds"] is not None:
        joining["thresholds"] = _thresholds(given["thresholds"])
    try:
        affinities = AffinitySpec(
            upscale=given["upscale"], tile_px=given["size"], layers=_layers(given["layers"]),
            decoder=given["decoder"], image_skip=given["image_skip"], n_views=given["views"],
            long_range=given["long_range"], window_sections=given["window_sections"],
            window_voxels=given["window_voxels"], steps=given["steps"], learning_rate=given["lr"], seed=given["seed"],
        )  # fmt: skip
        return EmRequest(
            run=given["run"], encoder=given["encoder"], encoder_settings=settings, called=given["called"],
            affinities=affinities, fragments=FragmentSpec(method=given["fragments"]),
            agglomeration=AgglomerationSpec(**joining), stage=given["stage"],
            optimistic=given["optimistic"], with_zarr=given["zarr"], with_floors=given["floors"],
            device=str(given["device"]), workers=given["workers"],
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        option = _OPTIONS.get(str(first["loc"][0]), str(first["loc"][0])).replace("_", "-")
        raise ConfigError(f"--{option}: {first['msg']}, got {first['input']}.") from error


def _thresholds(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError as error:
        raise ConfigError(f"--thresholds {text}: expected numbers separated by commas, as in 0.3,0.5.") from error


def _print(metrics: dict[str, Any]) -> None:
    for text in metrics["protocol"]["remarks"]:
        console.say(text)
    rows = [{"": f"threshold {metrics['threshold']:g} (validation)", **metrics}]
    if "best_on_test" in metrics:
        best = metrics["best_on_test"]
        rows.append({"": f"threshold {best['threshold']:g} (best on test: optimistic)", **best})
    rows += [{"": name, **floor} for name, floor in metrics["floors"].items()]
    console.print_table(rows, _SHOWN)
