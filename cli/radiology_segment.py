"""`wsi-dino radiology segment`: volumes segmented from frozen 2D features, cross-validated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.segmentation.request import SegmentRequest
    from wsi_dino.segmentation.results import Outcome

_FEATURES, _DECODER = "Slices and features", "Decoder"
_TRAINING, _SPLIT, _RESULTS = "Training", "Folds", "Results"
# option -> field of TrainingSpec
_TRAINING_FIELDS = {
    "epochs": "epochs", "lr": "learning_rate", "weight_decay": "weight_decay", "warmup_epochs": "warmup_epochs",
    "seed": "seed",
}  # fmt: skip


class DecoderOption(StrEnum):
    """Decoders of stacked maps."""

    conv3d = "conv3d"
    linear = "linear"
    unetr = "unetr"


class ModelOption(StrEnum):
    """Networks that learn from voxels."""

    unet = "monai-unet"
    vnet = "monai-vnet"
    unetr = "monai-unetr"
    swinunetr = "monai-swinunetr"


class SchemeOption(StrEnum):
    """Ways to make folds."""

    kfold = "kfold"
    repeated_holdout = "repeated-holdout"
    patients = "patients"


class MeetingOption(StrEnum):
    """Where channels meet."""

    auto = "auto"
    early = "early"
    late = "late"


class DefinitionOption(StrEnum):
    """Definitions of HD95."""

    max = "max"
    pooled = "pooled"


class EmptyOption(StrEnum):
    """What HD95 is with an empty mask."""

    nan = "nan"
    inf = "inf"
    image_diagonal = "image_diagonal"


def segment(
    ctx: typer.Context,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset", metavar="NAME", show_default=False,
            help="msd-task01 .. msd-task10, autopet2, hecktor2022, or nnunet for any folder in nnU-Net's form.",
        ),
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder of the dataset.", show_default=False)],
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="Encoder by name (`wsi-dino encoders` lists them), or --model.", show_default=False
        ),
    ] = None,
    model: Annotated[
        ModelOption | None,
        typer.Option(
            "--model", show_default=False, help="Instead of an encoder: a network that learns from voxels, by MONAI."
        ),
    ] = None,
    decoder: Annotated[
        DecoderOption,
        typer.Option(
            "--decoder",
            help="conv3d: light, with skip connections, as the paper's. linear: one linear map of a cell's features. "
            "unetr: towers of transposed convolutions.",
        ),
    ] = DecoderOption.conv3d,
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")] = Path("wsi-dino-run"),
    called: Annotated[
        str, typer.Option("--as", help="Name of the results' folder.  [default: ENCODER+DECODER]", show_default=False)
    ] = "",
    channels: Annotated[
        str | None,
        typer.Option(
            "--channels", metavar="A+B", show_default=False,
            help="Channels to use, e.g. ct, pet, ct+pet, flair+t1gd.  [default: all]",
        ),
    ] = None,
    weights: CheckpointOption = None,
    weights_dir: WeightsDirOption = None,
    random_weights: RandomWeightsOption = None,
    layers: Annotated[
        str | None,
        _option(_FEATURES, "--layers", metavar="N,N", help="Blocks or stages to stack.  [default: the encoder's own]"),
    ] = None,
    patch_mm: Annotated[
        float | None,
        _option(
            _FEATURES, "--patch-mm", min=0.01,
            help="Millimetres that a patch covers: slices are enlarged or reduced to it, all alike.  [default: 3.5 "
            "times the median in-plane spacing, or more where the largest slice would exceed --max-px]",
        ),
    ] = None,
    max_px: Annotated[
        int,
        _option(
            _FEATURES, "--max-px", min=32, help="Largest side of a slice shown without --patch-mm.  [default: 448]"
        ),
    ] = 448,
    views: Annotated[
        int,
        _option(
            _FEATURES, "--views", min=1, max=8,
            help="Flips and quarter turns of training slices, each encoded and kept: 1 as is, 2 with the mirror image, "
            "4 with half turns, 8 all.  [default: 1]",
        ),
    ] = 1,
    test_views: Annotated[
        int,
        _option(
            _FEATURES, "--test-views", min=1, max=8,
            help="The same for held-out slices, whose answers are averaged.  [default: 1]",
        ),
    ] = 1,
    channels_meet: Annotated[
        MeetingOption,
        _option(
            _FEATURES, "--channels-meet",
            help="early: as red, green and blue of one picture. late: each encoded alone, features joined.  [default: "
            "early for up to three channels, else late]",
        ),
    ] = MeetingOption.auto,
    image_skip: Annotated[
        bool, _option(_DECODER, "--image-skip", help="Give the image to the decoder too, at full resolution.")
    ] = False,
    crop_slices: Annotated[
        int, _option(_DECODER, "--crop-slices", min=1, help="Slices seen at once, at most.  [default: 48]")
    ] = 48,
    crop_cells: Annotated[
        int,
        _option(_DECODER, "--crop-cells", min=1, help="Cells of the coarsest map seen at once, a side.  [default: 20]"),
    ] = 20,
    epochs: Annotated[
        int | None, _option(_TRAINING, "--epochs", min=1, help="Passes over the training cases.  [default: 20]")
    ] = None,
    lr: Annotated[
        float | None,
        _option(_TRAINING, "--lr", help="Rate of AdamW, falling by a cosine.  [default: 3e-3; with --model 1e-3]"),
    ] = None,
    weight_decay: Annotated[
        float | None, _option(_TRAINING, "--weight-decay", help="Of AdamW.  [default: 1e-2]")
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        _option(_TRAINING, "--warmup-epochs", min=0, help="Epochs of linear warm-up.  [default: 0; with PET 1]"),
    ] = None,
    seed: Annotated[int | None, _option(_TRAINING, "--seed", min=0, help="Of weights, order, crops.  [default: 0]")]
    = None,
    folds: Annotated[int, _option(_SPLIT, "--folds", min=2, help="How many folds there are.  [default: 5]")] = 5,
    fold: Annotated[
        list[int] | None,
        _option(_SPLIT, "--fold", min=0, help="Only this fold, from 0; may be repeated.  [default: all]"),
    ] = None,
    split: Annotated[
        SchemeOption | None,
        _option(
            _SPLIT, "--split",
            help="kfold: nnU-Net's KFold(seed 12345) over sorted ids. repeated-holdout: independent random 80/20. "
            "patients: every nth patient.  [default: kfold; patients for autopet2 and hecktor2022]",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        _option(_SPLIT, "--limit", min=4, help="Use at most so many cases, spread over the folds: for a trial."),
    ] = None,
    hd95: Annotated[
        DefinitionOption,
        _option(_RESULTS, "--hd95", help="max: the larger directed percentile. pooled: of both.  [default: max]"),
    ] = DefinitionOption.max,
    hd95_empty: Annotated[
        EmptyOption,
        _option(_RESULTS, "--hd95-empty", help="What HD95 is when one mask is empty.  [default: nan]"),
    ] = EmptyOption.nan,
    no_predictions: Annotated[
        bool, _option(_RESULTS, "--no-predictions", help="Write no label maps of held-out cases.")
    ] = False,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Segment volumes with a frozen encoder of images and a light 3D decoder, cross-validated.

    Each axial slice goes through the encoder; maps of several layers are stacked to a volume, from which the decoder
    climbs to the voxels. Writes RUN/segmentation/DATASET/NAME/: report.html, metrics.json, cases.csv, predictions/,
    model/; those of the latest command lie at the top of RUN too. Run again, it does only what is missing or asked
    for differently. Exit code 1 when a case could not be used.
    """
    from wsi_dino.segmentation.run import segment as run_experiment

    request = _request({**ctx.params, "run": run, "root": root, "weights": weights, "weights_dir": weights_dir})
    with _told() as reporter:
        outcome = run_experiment(request, reporter)
    _print(outcome, as_json=as_json)
    console.leave(len(outcome.failures))


def _request(given: dict[str, Any]) -> SegmentRequest:
    from wsi_dino.segmentation.folds import SCHEMES
    from wsi_dino.segmentation.request import DecoderSpec, FeatureSpec, ScoringSpec, SegmentRequest

    if (given["encoder"] is None) == (given["model"] is None):
        raise ConfigError("Name either --encoder NAME or --model monai-unet (-vnet, -unetr, -swinunetr).")
    settings = {key: given[key] for key in ("weights", "weights_dir", "random_weights") if given[key] is not None}
    training = {field: given[key] for key, field in _TRAINING_FIELDS.items() if given[key] is not None}
    names = given["channels"]
    return SegmentRequest(
        run=given["run"],
        dataset=given["dataset"],
        root=given["root"],
        encoder=given["encoder"] or str(given["model"]),
        encoder_settings=settings,
        channels=None if names is None else tuple(name.strip().lower() for name in names.split("+")),
        called=given["called"],
        features=FeatureSpec.model_validate(
            {
                "layers": _layers(given["layers"]), "patch_mm": given["patch_mm"], "max_px": given["max_px"],
                "n_views": given["views"], "n_test_views": given["test_views"], "meeting": str(given["channels_meet"]),
            }
        ),
        decoder=DecoderSpec.model_validate(
            {"name": str(given["decoder"])} | {key: given[key] for key in ("image_skip", "crop_slices", "crop_cells")}
        ),
        scoring=ScoringSpec.model_validate({"definition": str(given["hd95"]), "empty": str(given["hd95_empty"])}),
        training=training,
        scheme=next((known for known in SCHEMES if known == given["split"]), None),
        n_folds=given["folds"],
        folds=tuple(sorted(set(given["fold"]))) if given["fold"] else None,
        n_cases=given["limit"],
        workers=given["workers"],
        device=str(given["device"]),
        keep_predictions=not given["no_predictions"],
    )  # fmt: skip


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--layers {text}: expected numbers separated by commas, as in 2,5,8,11.") from error


class Told:
    """Steps of a run as progress on stderr."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._title, self._total, self._done = "", 0, 0

    def say(self, message: str) -> None:
        """Tell a sentence."""
        console.say(message)

    def begin(self, title: str, total: int) -> None:
        """Begin a step."""
        self._title, self._total, self._done = title, total, 0
        self._last = time.monotonic()

    def advance(self, text: str = "") -> None:
        """One part is done; told every ten seconds."""
        self._done += 1
        if time.monotonic() - self._last >= 10:
            self._last = time.monotonic()
            console.say(f"{self._title}: {self._done} of {self._total} {text}".rstrip())


@contextmanager
def _told() -> Iterator[Told]:
    yield Told()


def _print(outcome: Outcome, *, as_json: bool) -> None:
    from wsi_dino.segmentation.results import metrics_of

    metrics = metrics_of(outcome)
    if as_json:
        console.print_json({**metrics, "folder": outcome.layout.results})
        return
    hd95 = metrics["hd95_mm"]
    rows: list[Any] = [
        {
            "class": name,
            "dice": value,
            "hd95_mm": hd95["per_class"][name],
            "hd95_of": f"{hd95['n_valid_per_class'][name]} of {hd95['n_total_per_class'][name]}",
            "mean_shape": metrics["baselines"]["mean-shape"]["dice"]["per_class"][name],
        }
        for name, value in metrics["dice"]["per_class"].items()
    ]
    mean = {"class": "mean", "dice": metrics["dice"]["mean"], "hd95_mm": hd95["mean"]}
    mean["hd95_of"] = f"{hd95['n_valid']} of {hd95['n_total']}"
    console.print_table(
        [*rows, {**mean, "mean_shape": metrics["baselines"]["mean-shape"]["dice"]["mean"]}],
        ["class", "dice", "hd95_mm", "hd95_of", "mean_shape"],
    )
    for failure in outcome.failures:
        console.say(f"failed: {failure['case_id']}: {failure['message']}")
    console.say(f"{metrics['n_cases']} held-out cases; results in {outcome.layout.results}")
