"""Neurons in electron microscopy: CREMI, AC3/AC4, Wafer4, volumes of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsi_dino.errors import ConfigError
from wsi_dino.paper.kind import Context, Figure, Work
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.step import ResultKey, Step, flags
from wsi_dino.run_folder import safe_name

if TYPE_CHECKING:
    from wsi_dino.segmentation.neurons.datasets import EmDataset

_COMMAND = "em"
NETWORK = "unet3d"
_FILES = ("train-image", "train-labels", "test-image", "test-labels")
_FIGURES = {"voi_split": ("voi_split", "bits"), "voi_merge": ("voi_merge", "bits"), "voi_sum": ("voi", "bits"),
            "arand": ("arand", "share")}  # fmt: skip
_ALONE = "one test volume: no interval"
_OVERLAP = 0.25


class Em:
    """`wsi-dino radiology em`."""

    name = "em"
    commands: tuple[str, ...] = (_COMMAND,)
    unit_of_resampling = "nothing"

    def steps(self, entry: Entry, encoders: Sequence[str], context: Context) -> list[Step]:
        """Return one command an encoder, or 3D U-Net."""
        return [self._step(entry, encoder, context) for encoder in encoders]

    def _step(self, entry: Entry, encoder: str, context: Context) -> Step:
        words = ["radiology", _COMMAND, "--encoder", encoder, *_data_words(entry), "--as", safe_name(encoder)]
        words += [*flags(entry.options_of(_COMMAND)), "--run", str(context.run_of(entry))]
        words += context.running_words() if encoder == NETWORK else context.model_words(encoder)
        name = entry.form or entry.name
        folder = entry.folder / "em" / safe_name(name) / safe_name(encoder)
        return Step(
            f"{entry.folder.name}.{safe_name(encoder)}", self.name, entry.name, encoder, tuple(words),
            {ResultKey(entry.name, "", encoder): folder / "metrics.json"},
            inputs=(entry.root, *context.weights_inputs(encoder)),
        )  # fmt: skip

    def figures(self, metrics: Mapping[str, Any], folder: Path) -> dict[str, Figure]:
        """Return those at the threshold that validation sections chose."""
        convention = f"{metrics['protocol']['figures']}; threshold: {metrics['protocol']['threshold_from']}"
        return {
            metric: Figure(metrics[key], None, None, unit, convention, _ALONE)
            for metric, (key, unit) in _FIGURES.items()
        }

    def protocol(self, metrics: Mapping[str, Any]) -> str:
        """Return sections, affinities, post-processing."""
        protocol = metrics["protocol"]
        affinities = protocol["affinities"]
        source = "3D U-Net from voxels" if protocol["supervised"] else (
            f"{affinities['decoder']} on frozen features, enlarged {affinities['upscale']} times")  # fmt: skip
        return (
            f"{protocol['split']}; {source}, {affinities['steps']} steps; fragments {protocol['fragments']['method']}, "
            f"scoring {protocol['agglomeration']['scoring']}, threshold {metrics['threshold']:g}"
        )

    def work(self, entry: Entry, encoder: str) -> Work:
        """Count sections and tiles, from the heads of the files."""
        options = entry.options_of(_COMMAND)
        if encoder == NETWORK:
            return Work(0, "sections", 0.0, None, True, 0.0, "", "a network that learns from voxels encodes nothing")
        dataset = em_dataset(entry)
        upscale, side_px = int(options.get("upscale", 4)), int(options.get("size", 448))
        views = int(options.get("views", 2))
        sections, tiles = 0, 0
        for number, source in enumerate(dataset.subsets):
            depth, height, width = source.shape
            each = _n_tiles(height * upscale, side_px) * _n_tiles(width * upscale, side_px)
            sections += depth
            tiles += depth * each * (views if number == 0 else 1)
        counted = f"{sections} sections, {tiles} tiles of {side_px} px with views"
        return Work(sections, "sections", tiles, side_px, True, 0.5, counted, "training, fragments, agglomeration")


def em_dataset(entry: Entry) -> EmDataset:
    """Open the volumes of an entry; only heads of files are read.

    Raises:
        ConfigError: files are not named.
        VolumeError: files are missing or do not fit.
    """
    from wsi_dino.segmentation.neurons.datasets import open_dataset, open_files

    options = entry.options_of(_COMMAND)
    n_val = None if "val-sections" not in options else int(options["val-sections"])
    if entry.form:
        end: Literal["first", "last"] = "last" if options.get("ac3-sections") == "last" else "first"
        return open_dataset(entry.form, entry.root, n_val=n_val, ac3_end=end)
    _data_words(entry)
    train, test = ((_file(entry, f"{part}-image"), _file(entry, f"{part}-labels")) for part in ("train", "test"))
    return open_files(train, test, name=entry.name, n_val=n_val)


def _n_tiles(length_px: int, side_px: int) -> int:
    return 1 if length_px <= side_px else -(-(length_px - side_px) // round(side_px * (1 - _OVERLAP))) + 1


def _file(entry: Entry, name: str) -> str:
    path, colon, key = entry.files[name].partition(":")
    return f"{entry.root / path}{colon}{key}"


def _data_words(entry: Entry) -> list[str]:
    if entry.form:
        return ["--dataset", entry.form, "--root", str(entry.root)]
    missing = [name for name in _FILES if name not in entry.files]
    if missing:
        raise ConfigError(f"ROOTS.yaml, {entry.name}: files: missing {', '.join(missing)}; all four are needed.")
    words = ["--name", entry.name]
    for name in _FILES:
        words += [f"--{name}", _file(entry, name)]
    return words
