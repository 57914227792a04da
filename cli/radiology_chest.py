"""`wsi-dino radiology chest-xray`: labels of radiographs from frozen features, for encoders and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console, options, probe_adapting, probe_options
from wsi_dino.cli.embed import PrecisionName
from wsi_dino.cli.options import EncodersOption, JsonOption, WorkersOption
from wsi_dino.cli.options import panel_option as _option
from wsi_dino.cli.probe_options import AspectName, DuplicatePolicy, MissingPolicy, UnlistedPolicy
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.radiology.chest_run import ChestSpec
    from wsi_dino.radiology.datasets.image_set import ImageSet
    from wsi_dino.radiology.datasets.reader import DataRequest

_PIXELS, _PROBE, _JUDGING = "Images and pixels", "Probe", probe_options.JUDGING
_SHOWN_STUDY = ["encoder", "input_px", "labels", "auc_macro", "auc_macro_frequent", "auc_macro_frequent_low",
                "auc_macro_frequent_high", "check_auc_macro_frequent"]  # fmt: skip


class IntensityName(StrEnum):
    """Ways to 8 bits."""

    native = "native"
    minmax = "minmax"
    max = "max"


class OptimiserName(StrEnum):
    """Optimisers of the probe."""

    adam = "adam"
    adamw = "adamw"
    sgd = "sgd"


class ScheduleName(StrEnum):
    """Learning rates over the epochs."""

    constant = "constant"
    cosine = "cosine"


def chest_xray(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset", metavar=probe_options.dataset_metavar("images"), show_default=False,
            help="A data set as it is published, or a table: image, patient_id, a column of 0 and 1 for each label, if "
            "wanted subset (train, val, test).",
        ),
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder of the images.", show_default=False)],
    encoder: EncodersOption,
    size: Annotated[
        list[int] | None,
        typer.Option(
            "--size", min=1, help="Side of the square the encoder sees, px; may be repeated. A multiple of its patch. "
            "[default: the encoder's own]", show_default=False,
        ),
    ] = None,
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")] = Path("wsi-dino-run"),
    labels: Annotated[
        list[str] | None,
        _option(
            _PIXELS, "--labels",
            help="Labels to learn: NAME, of a table also FIRST..LAST (columns side by side) or COLUMN=VALUE; separated "
            "by commas or repeated.  [default: all]",
        ),
    ] = None,
    task: Annotated[
        str, _option(_PIXELS, "--task", help="Name of these labels: their results get a folder of that name.")
    ] = "",
    limit: Annotated[
        int, _option(_PIXELS, "--limit", min=0, help="Take so many images, spread over the table; 0: all.")
    ] = 0,
    missing: probe_options.MissingOption = MissingPolicy.fail,
    unlisted: probe_options.UnlistedOption = UnlistedPolicy.ignore,
    duplicates: probe_options.DuplicatesOption = DuplicatePolicy.fail,
    aspect: Annotated[
        AspectName,
        _option(
            _PIXELS, "--aspect",
            help="An image that is not square: pad with black, squash, or crop the middle.  [default: pad]",
        ),
    ] = AspectName.pad,
    crop_fraction: Annotated[
        str,
        _option(
            _PIXELS, "--crop-fraction", metavar="FRACTION|record",
            help="Share of the side that is kept, the middle; record: what the encoder's authors kept. Findings lie "
            "at the edges too.  [default: 1, the whole image]",
        ),
    ] = "1",
    intensity: Annotated[
        IntensityName,
        _option(
            _PIXELS, "--intensity",
            help="To 8 bits: native (8-bit values as they are, deeper images from least to greatest), minmax, or max "
            "(MGCA's).  [default: native]",
        ),
    ] = IntensityName.native,
    pooling: probe_options.PoolingOption = None,
    weights: probe_options.WeightsOption = None,
    weights_dir: options.WeightsDirOption = None,
    random_weights: options.RandomWeightsOption = None,
    adapter: probe_options.AdapterOption = None,
    precision: probe_options.PrecisionOption = PrecisionName.auto,
    device: probe_options.PlaceOption = "auto",
    workers: WorkersOption = 0,
    optimiser: Annotated[
        OptimiserName, _option(_PROBE, "--optimiser", help="The paper names none.  [default: adam]")
    ] = OptimiserName.adam,
    learning_rate: Annotated[
        float, _option(_PROBE, "--learning-rate", help="The paper's is the default.  [default: 0.005]")
    ] = 0.005,
    batch_size: Annotated[
        int, _option(_PROBE, "--batch-size", min=1, help="The paper's is the default.  [default: 1024]")
    ] = 1024,
    epochs: Annotated[
        int, _option(_PROBE, "--epochs", min=1, help="The paper's is the default.  [default: 50]")
    ] = 50,
    weight_decay: Annotated[
        float, _option(_PROBE, "--weight-decay", min=0, help="The paper names none.  [default: 0]")
    ] = 0.0,
    schedule: Annotated[
        ScheduleName, _option(_PROBE, "--schedule", help="Of the learning rate.  [default: constant]")
    ] = ScheduleName.constant,
    standardise: Annotated[
        bool,
        _option(
            _PROBE, "--standardise/--no-standardise",
            help="Bring features to mean 0, deviation 1 of the training images.  [default: yes]",
        ),
    ] = True,
    split: Annotated[str, probe_options.split_option("images")] = "auto",
    folds: probe_options.FoldsOption = 5,
    seed: probe_options.SeedOption = 0,
    threshold: probe_options.ThresholdOption = "youden-on-validation",
    optimistic: probe_options.OptimisticOption = False,
    zero_division: Annotated[
        int, _option(_JUDGING, "--zero-division", min=0, max=1, help="What 0/0 counts as.  [default: 0]")
    ] = 0,
    bootstrap: probe_options.BootstrapOption = 1000,
    pictures: probe_options.PicturesOption = True,
    adapt: probe_adapting.AdaptOption = None,
    adapt_epochs: probe_adapting.EpochsOption = None,
    adapt_lr: probe_adapting.RateOption = None,
    adapt_rank: probe_adapting.RankOption = None,
    adapt_layers: probe_adapting.LayersOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Learn labels of radiographs from frozen features, and judge by every convention.

    Writes RUN/radiology/DATASET/ENCODER@SIZE/ with metrics.json, predictions.csv and report.html, features beside
    them, and for several encoders or sizes the study: study.csv and auc-by-size.svg and .png. With --adapt lora
    the encoder itself learns with them, fold by fold. The same command goes on where it was killed. Exit code 1 when
    an image could not be read.
    """
    from wsi_dino.cli.radiology_chest_work import Asked, run_study
    from wsi_dino.run_folder import RunFolder

    adapting = {"adapt": adapt, "adapt_epochs": adapt_epochs, "adapt_lr": adapt_lr, "adapt_rank": adapt_rank,
                "adapt_layers": adapt_layers}  # fmt: skip
    probe_adapting.check_adapt_options(adapting, adapter=adapter)
    settings = probe_options.probed_encoders(
        encoder, size, pooling=pooling, weights=weights, adapter=adapter, weights_dir=weights_dir,
        random_weights=random_weights, precision=precision,
    )  # fmt: skip
    judging = {"threshold": threshold, "optimistic": optimistic, "zero_division": zero_division,
               "n_resamples": bootstrap, "seed": seed}  # fmt: skip
    probe = {"optimiser": optimiser.value, "learning_rate": learning_rate, "batch_size": batch_size,
             "n_epochs": epochs, "weight_decay": weight_decay, "schedule": schedule.value,
             "standardise": standardise, "seed": seed}  # fmt: skip
    request = probe_options.data_request(labels, (), split, "auto", duplicates)
    images = _images(dataset, root, request, missing, unlisted).limited(limit)
    view = {"aspect": aspect.value, "crop_fraction": crop_fraction, "intensity": intensity.value}
    spec, command = _spec(probe, judging, folds, seed), probe_options.typed_command()
    asked = Asked(RunFolder(run), images, settings, view, spec, task, device, workers, command, pictures, adapting)
    _say_images(images)
    results, failures = run_study(asked)
    folder = asked.folder
    if as_json:
        console.print_json(_as_json(run, results, folder))
    else:
        _print(results, folder)
    probe_options.say_failures(list(failures.items()), "metrics.json")
    console.leave(len(failures))


def _spec(probe: dict[str, Any], judging: dict[str, Any], folds: int, seed: int) -> ChestSpec:
    from pydantic import ValidationError

    from wsi_dino.evaluation.linear_probe import LinearProbeSpec, LogisticSpec
    from wsi_dino.radiology.chest_run import ChestSpec

    try:
        return ChestSpec(
            probe=LinearProbeSpec(**probe),
            check=LogisticSpec(standardise=probe["standardise"]),
            evaluation=probe_options.evaluation_spec(**judging),
            n_folds=folds,
            seed=seed,
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-")
        raise ConfigError(f"--{option}: {first['msg']}, got {first['input']}.") from error


def _images(
    dataset: str, root: Path, request: DataRequest, missing: MissingPolicy, unlisted: UnlistedPolicy
) -> ImageSet:
    from wsi_dino.radiology.datasets.reader import read_images

    images = read_images(dataset, root, request)
    return images.settled(skip_missing=missing == MissingPolicy.skip, refuse_unlisted=unlisted == UnlistedPolicy.fail)


def _say_images(images: ImageSet) -> None:
    patients = len(set(images.patient_ids))
    console.say(f"{images.name}: {len(images)} images, {patients} patients, {len(images.label_names)} labels")
    if images.unlisted:
        shown = ", ".join(images.unlisted[:3]) + (" ..." if len(images.unlisted) > 3 else "")
        console.say(f"note: {len(images.unlisted)} image files are not in the table and take no part: {shown}")
    for remark in images.remarks:
        console.say(f"note: {remark}")


def _as_json(run: Path, results: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from wsi_dino.evaluation.size_study import study_rows

    head = {"command": "radiology chest-xray", "run": str(run), "folder": str(folder)}
    return {**head, **probe_options.told_as_json(results, study_rows(results))}


def _print(results: Sequence[dict[str, Any]], folder: Path) -> None:
    from wsi_dino.evaluation.size_study import study_rows

    for result in results:
        print(f"{result['dataset']} from {result['encoder']} at {result['input_px']} px")
        probe_options.print_labels(result)
        print()
    if len(results) > 1:
        console.print_table(list(study_rows(results)), _SHOWN_STUDY)
    print(f"results: {folder}")
