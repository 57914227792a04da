"""`wsi-dino radiology segment-predict` and `segment-export`: trained models on new volumes; folders for nnU-Net."""

from __future__ import annotations

import re
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
from wsi_dino.cli.radiology_segment import SchemeOption
from wsi_dino.errors import ConfigError, VolumeError
from wsi_dino.run_folder import safe_name

if TYPE_CHECKING:
    from wsi_dino.segmentation.prediction import Predictor

_ENDINGS = (".nii.gz", ".nii")
_JOINED = re.compile(r"(?<=\.nii\.gz)\+|(?<=\.nii)\+")  # a folder may have a + in its name


def segment_predict(
    model: Annotated[
        Path,
        typer.Argument(
            help="RUN/segmentation/DATASET/NAME, its model/ folder, or one fold_N.safetensors. Several folds are "
            "averaged.",
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="NIfTI files, or folders of them. For several channels: the files of one volume joined by +, as in "
            "CT.nii.gz+PET.nii.gz; or one 4D file; or a folder of CASE_0000.nii.gz, CASE_0001.nii.gz as nnU-Net has "
            "them.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder for the label maps.", show_default=False)],
    weights: CheckpointOption = None,
    weights_dir: WeightsDirOption = None,
    random_weights: RandomWeightsOption = None,
    fold: Annotated[
        list[int] | None,
        typer.Option("--fold", min=0, help="Use only this fold's model; may be repeated.", show_default=False),
    ] = None,
    test_views: Annotated[
        int,
        typer.Option(
            "--test-views", min=1, max=8, help="Flips and quarter turns of each slice whose answers are averaged."
        ),
    ] = 1,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Segment new volumes with trained models.

    Writes one label map a volume, on exactly the grid of its first channel: NAME.nii.gz of NAME.nii.gz, and as nnU-Net
    does CASE.nii.gz of CASE_0000.nii.gz. Exit code 1 when one could not be segmented.
    """
    from wsi_dino.segmentation.prediction import open_predictor

    settings: dict[str, Any] = {"weights": weights, "weights_dir": weights_dir, "random_weights": random_weights}
    given = {key: value for key, value in settings.items() if value is not None}
    predictor = open_predictor(model, device=str(device), workers=workers, folds=fold, n_test_views=test_views, **given)
    rows = _predict_all(predictor, _volumes(images, len(predictor.channels)), output)
    failed = [row for row in rows if row["status"] == "failed"]
    if as_json:
        console.print_json({"volumes": rows, "n_failed": len(failed), "classes": predictor.facts.classes})
    else:
        console.print_table(rows, ["image", "status", "labels"])
    for row in failed:
        console.say(f"failed: {row['image']}: {row['message']}")
    console.leave(len(failed))


def _predict_all(predictor: Predictor, volumes: dict[str, list[Any]], output: Path) -> list[Any]:
    from wsi_dino.segmentation.prediction import predict_file

    rows: list[Any] = []
    with console.progress("segmenting", len(volumes), "volumes") as progress:
        for name, files in volumes.items():
            target = output / f"{safe_name(name)}.nii.gz"
            try:
                predict_file(predictor, files, target)
                rows.append({"image": name, "status": "done", "labels": str(target), "message": ""})
            except VolumeError as error:
                rows.append({"image": name, "status": "failed", "labels": None, "message": str(error)})
            progress(1, text=name)
    return rows


def _volumes(images: list[Path], n_channels: int) -> dict[str, list[Any]]:
    from wsi_dino.segmentation.case import ChannelFile
    from wsi_dino.segmentation.datasets.nnunet import case_of_channels

    asked = [parts for given in images for parts in _parts(given, n_channels)]
    cases = [case_of_channels(parts) for parts in asked]
    found: dict[str, list[Any]] = {}
    for parts, case in zip(asked, cases, strict=True):
        one_file = len(parts) == 1 and n_channels > 1
        files = [ChannelFile(parts[0], i) for i in range(n_channels)] if one_file else [ChannelFile(p) for p in parts]
        if len(files) != n_channels:
            raise ConfigError(f"{parts[0]}: the model wants {n_channels} channels, got {len(parts)} files of it.")
        # names that are numbers of channels in some files only are no channels of nnU-Net's
        name = _stem(parts[0]) if case is None or None in cases else case
        if name in found:
            raise ConfigError(f"{parts[0]}: two volumes are called {name}; their label maps would be one file.")
        found[name] = files
    return found


def _parts(given: Path, n_channels: int) -> list[list[Path]]:
    """Return the files of each volume: those joined by +, and in a folder of nnU-Net's form those of one case."""
    from wsi_dino.segmentation.datasets.nnunet import by_case

    joined = _JOINED.split(str(given))
    if len(joined) > 1 and not given.exists():
        return [[Path(part) for part in joined]]
    files = _files(given)
    cases = by_case(files) if given.is_dir() and n_channels > 1 else None
    return [[file] for file in files] if cases is None else cases


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file or folder.")
        return [path]
    found = sorted(item for item in path.iterdir() if item.name.endswith(_ENDINGS) and not item.name.startswith("."))
    if not found:
        raise ConfigError(f"{path}: there is no NIfTI file in this folder.")
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def segment_export(
    dataset: Annotated[
        str,
        typer.Option("--dataset", metavar="NAME", show_default=False, help="As for `radiology segment`."),
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder of the dataset.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", show_default=False, help="Folder to write, called DatasetNNN_Name, as nnU-Net wants."),
    ],
    channels: Annotated[
        str | None, typer.Option("--channels", metavar="A+B", help="Channels to write.  [default: all]",
                                 show_default=False)
    ] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="How many folds there are.")] = 5,
    split: Annotated[
        SchemeOption | None,
        typer.Option("--split", help="As for `radiology segment`.  [default: as there]", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write a dataset in nnU-Net v2's form, with our folds as its splits_final.json.

    Copy splits_final.json to nnUNet_preprocessed/DatasetNNN_Name after nnU-Net has planned, and it trains on exactly
    these folds. The other way round, `radiology segment --dataset nnunet` reads any folder in this form. Exit code 1
    when a case could not be written.
    """
    from wsi_dino.segmentation.datasets.opening import open_dataset
    from wsi_dino.segmentation.folds import SCHEMES, default_scheme, describe_scheme, make_folds
    from wsi_dino.segmentation.nnunet_export import export_nnunet

    opened = open_dataset(dataset, root)
    if channels is not None:
        opened = opened.with_channels([name.strip().lower() for name in channels.split("+")])
    scheme = next((known for known in SCHEMES if known == split), default_scheme(opened))
    made = make_folds(opened.cases, folds, scheme)
    with console.progress("writing", len(opened.cases), "cases") as progress:
        exported = export_nnunet(opened, made, output, lambda case_id: progress(1, text=case_id))
    for failure in exported.failures:
        console.say(f"failed: {failure['case_id']}: {failure['message']}")
    summary = {
        "folder": exported.folder, "n_cases": exported.n_cases, "n_failed": len(exported.failures),
        "failures": list(exported.failures), "split": describe_scheme(scheme, folds),
    }  # fmt: skip
    if as_json:
        console.print_json(summary)
    else:
        console.say(f"{exported.n_cases} cases written to {exported.folder}; folds: {summary['split']}")
    console.leave(len(exported.failures))
