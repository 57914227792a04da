"""`wsi-dino radiology ct`: labels of CT volumes from frozen features of their slices."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino import share
from wsi_dino.cli import console, options, probe_adapting, probe_options
from wsi_dino.cli.embed import PrecisionName
from wsi_dino.cli.options import EncodersOption, JsonOption, WorkersOption
from wsi_dino.cli.options import panel_option as _option
from wsi_dino.cli.probe_options import AspectName, DuplicatePolicy, MissingPolicy, UnlistedPolicy

if TYPE_CHECKING:
    from wsi_dino.cli.radiology_ct_work import CtAsked
    from wsi_dino.radiology.ct_folds import CtSpec
    from wsi_dino.radiology.datasets.reader import DataRequest
    from wsi_dino.radiology.datasets.volume_row import VolumeTable

_PIXELS, _PROBE = "Volumes and slices", "Probe"


class ProbeOption(StrEnum):
    """Probes."""

    linear = "linear"
    knn = "knn"


class PoolName(StrEnum):
    """Ways from slices to a volume."""

    mean = "mean"
    max = "max"
    mean_std = "mean+std"
    attention = "attention"


class HuName(StrEnum):
    """What to do about Hounsfield units."""

    auto = "auto"
    apply = "apply"
    already = "already"


class MetricName(StrEnum):
    """Distances of k-NN."""

    cosine = "cosine"
    euclidean = "euclidean"


class WeightingName(StrEnum):
    """Weights of neighbours."""

    uniform = "uniform"
    distance = "distance"
    softmax = "softmax"


def ct(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset", metavar=probe_options.dataset_metavar("volumes"), show_default=False,
            help="A data set as it is published, or a table: volume (file or DICOM folder below --root), patient_id, a "
            "column of 0, 1 or nothing for each label; if wanted subset (train, val, test), scan_id, rescale_slope and "
            "rescale_intercept, spacing_x_mm, spacing_y_mm and spacing_z_mm.",
        ),
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder of the volumes.", show_default=False)],
    encoder: EncodersOption,
    probe: Annotated[
        ProbeOption,
        typer.Option("--probe", help="linear: the paper's, beside logistic regression. knn: votes of neighbours."),
    ] = ProbeOption.linear,
    size: Annotated[
        list[int] | None,
        typer.Option(
            "--size", min=1, show_default=False,
            help="Side of the square the encoder sees, px; may be repeated.  [default: the encoder's own]",
        ),
    ] = None,
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")] = Path("wsi-dino-run"),
    window: Annotated[
        str,
        _option(
            _PIXELS, "--window", metavar="lung|mediastinum|wide|three|LOW:HIGH",
            help="Hounsfield units from black to white: lung -1350:150, mediastinum -160:240, wide -1000:1000; three: "
            "these as the three channels.  [default: wide]",
        ),
    ] = "wide",
    pool: Annotated[
        PoolName,
        _option(
            _PIXELS, "--pool",
            help="How the vectors of all slices become one: mean, max, mean+std, or attention, learnt with the "
            "labels.  [default: mean]",
        ),
    ] = PoolName.mean,
    aspect: Annotated[
        AspectName,
        _option(_PIXELS, "--aspect", help="A slice that is not square: pad with black, squash, or crop the middle.  "
                "[default: pad]"),
    ] = AspectName.pad,
    hu: Annotated[
        HuName,
        _option(
            _PIXELS, "--hu",
            help="auto: apply slope and intercept unless the values are HU already, and say so; apply; already. What "
            "cannot be HU is refused.  [default: auto]",
        ),
    ] = HuName.auto,
    release: Annotated[str, probe_options.release_option(_PIXELS)] = "auto",
    labels: Annotated[
        list[str] | None,
        _option(_PIXELS, "--labels", help="Labels to learn, separated by commas or repeated.  [default: all]"),
    ] = None,
    task: Annotated[
        str, _option(_PIXELS, "--task", help="Name of these labels: their results get a folder of that name.")
    ] = "",
    baseline: Annotated[
        list[str] | None,
        _option(_PIXELS, "--baseline", help="Column of numbers whose AUC is told beside; may be repeated."),
    ] = None,
    missing: probe_options.MissingOption = MissingPolicy.fail,
    unlisted: probe_options.UnlistedOption = UnlistedPolicy.ignore,
    duplicates: probe_options.DuplicatesOption = DuplicatePolicy.fail,
    limit: Annotated[
        int, _option(_PIXELS, "--limit", min=0, help="Take so many volumes, spread over the table; 0: all.")
    ] = 0,
    readers: Annotated[
        int,
        _option(_PIXELS, "--readers", min=0, help="Volumes decoded at once, each in memory; 0: one a core, at most 4."),
    ] = 0,
    pooling: probe_options.PoolingOption = None,
    weights: probe_options.WeightsOption = None,
    weights_dir: options.WeightsDirOption = None,
    random_weights: options.RandomWeightsOption = None,
    adapter: probe_options.AdapterOption = None,
    precision: probe_options.PrecisionOption = PrecisionName.auto,
    device: probe_options.PlaceOption = "auto",
    workers: WorkersOption = 0,
    k: Annotated[
        list[int] | None,
        _option(_PROBE, "--k", min=1, help="Neighbours; of several the best on validation.  [default: 5 ... 200]"),
    ] = None,
    metric: Annotated[
        list[MetricName] | None, _option(_PROBE, "--metric", help="Of neighbours; may be repeated.  [default: cosine]")
    ] = None,
    weighting: Annotated[
        list[WeightingName] | None,
        _option(_PROBE, "--weighting", help="Of votes: uniform, distance, softmax (DINO's); may be repeated.  "
                "[default: uniform softmax]"),
    ] = None,
    split: Annotated[str, probe_options.split_option("volumes")] = "auto",
    folds: probe_options.FoldsOption = 5,
    seed: probe_options.SeedOption = 0,
    threshold: probe_options.ThresholdOption = "youden-on-validation",
    optimistic: probe_options.OptimisticOption = False,
    bootstrap: probe_options.BootstrapOption = 1000,
    pictures: probe_options.PicturesOption = True,
    adapt: probe_adapting.AdaptOption = None,
    adapt_slices: probe_adapting.SlicesOption = None,
    adapt_epochs: probe_adapting.EpochsOption = None,
    adapt_lr: probe_adapting.RateOption = None,
    adapt_rank: probe_adapting.RankOption = None,
    adapt_layers: probe_adapting.LayersOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Learn labels of CT volumes from frozen features of all their slices.

    Writes RUN/radiology/DATASET/ENCODER@SIZE-WINDOW-POOL-PROBE/ with metrics.json, predictions.csv, report.html and
    volumes.csv, features beside them, and for several encoders or sizes a study. With --adapt lora the encoder itself
    learns with them, fold by fold. The same command goes on where it was killed; several may share a run. Exit code 1
    when a volume could not be used; the others are judged.
    """
    from wsi_dino.cli.radiology_ct_work import CtAsked, run_ct
    from wsi_dino.run_folder import RunFolder

    adapting = {"adapt": adapt, "adapt_slices": adapt_slices, "adapt_epochs": adapt_epochs, "adapt_lr": adapt_lr,
                "adapt_rank": adapt_rank, "adapt_layers": adapt_layers}  # fmt: skip
    probe_adapting.check_adapt_options(adapting, adapter=adapter, shard=_lone_part())
    knn = {"ks": tuple(dict.fromkeys(k or ())), "metrics": tuple(dict.fromkeys(m.value for m in metric or ())),
           "weightings": tuple(dict.fromkeys(w.value for w in weighting or ()))}  # fmt: skip
    judging = {"threshold": threshold, "optimistic": optimistic, "n_resamples": bootstrap, "seed": seed}
    spec = _spec(probe.value, pool.value, {key: value for key, value in knn.items() if value}, judging, folds, seed)
    asked = CtAsked(
        run=RunFolder(run),
        table=_table(
            dataset, root, probe_options.data_request(labels, baseline or (), split, release, duplicates), missing,
            unlisted,
        ).limited(limit),
        encoders=probe_options.probed_encoders(
            encoder, size, pooling=pooling, weights=weights, adapter=adapter, weights_dir=weights_dir,
            random_weights=random_weights, precision=precision,
        ),
        view={"window": window, "aspect": aspect.value, "hu": hu.value},
        spec=spec,
        task=task,
        device=device,
        workers=workers,
        readers=readers,
        command=probe_options.typed_command(),
        with_pictures=pictures,
        adapting=adapting,
    )  # fmt: skip
    _say_table(asked.table)
    _report(asked, *run_ct(asked), as_json=as_json)


def _spec(
    probe: str, pool: str, knn: dict[str, Any], judging: dict[str, Any], folds: int, seed: int
) -> CtSpec:  # fmt: skip
    from wsi_dino.evaluation.attention_probe import AttentionSpec
    from wsi_dino.evaluation.linear_probe import LinearProbeSpec
    from wsi_dino.radiology.ct_folds import CtSpec

    spec = CtSpec.model_validate({
        "probe": probe, "pool": pool, "linear": LinearProbeSpec(seed=seed), "attention": AttentionSpec(seed=seed),
        "evaluation": probe_options.evaluation_spec(**judging), "n_folds": folds, "seed": seed, **knn,
    })  # fmt: skip
    spec.check_sense()
    return spec


def _table(
    dataset: str, root: Path, request: DataRequest, missing: MissingPolicy, unlisted: UnlistedPolicy
) -> VolumeTable:
    from wsi_dino.radiology.datasets.reader import read_volumes
    from wsi_dino.radiology.datasets.volume_row import settle_missing

    table = read_volumes(dataset, root, request)
    return settle_missing(table, skip=missing == MissingPolicy.skip, refuse_unlisted=unlisted == UnlistedPolicy.fail)


def _lone_part() -> str:
    """Return this process's part as typed, if it does not help the others; one that does stops before it adapts."""
    mine = share.current()
    return "" if mine is None or mine.helps else str(mine)


def _say_table(table: VolumeTable) -> None:
    patients = len({row.patient_id for row in table.rows})
    console.say(f"{table.name}: {len(table.rows)} volumes, {patients} patients, {len(table.label_names)} labels")
    reasons = list(table.left_out.values())
    for reason in dict.fromkeys(reasons):
        console.say(f"note: {reasons.count(reason)} volumes left out: {reason}")
    if table.missing:
        console.say(f"note: {len(table.missing)} volumes have no file, e.g. {table.missing[0]}")
    if table.unlabelled:
        first = table.unlabelled[0]
        console.say(f"note: {len(table.unlabelled)} volumes on disk are not in the table, e.g. {first}")
    for remark in table.remarks:
        console.say(f"note: {remark}")


def _report(asked: CtAsked, results: list[dict[str, Any]], n_failed: int, *, as_json: bool) -> None:
    from wsi_dino.cli.radiology_ct_work import print_results

    head = {"command": "radiology ct", "run": str(asked.run.path), "folder": str(asked.folder)}
    if as_json:
        table = [_row(result) for result in results if "labels" in result]
        console.print_json({**head, **probe_options.told_as_json(results, table)})
    else:
        print_results(results, asked.folder)
    console.leave(n_failed)


def _row(result: dict[str, Any]) -> dict[str, Any]:
    return {"encoder": result["encoder"], "input_px": result["input_px"], **result["summary"]["auc_macro"]}
