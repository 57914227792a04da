"""Chest X-rays: NIH ChestX-ray14, RSNA Pneumonia, tables of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_dino.encoders.registry import get_record
from wsi_dino.errors import ConfigError
from wsi_dino.paper.kind import Context, Figure, Work
from wsi_dino.paper.kinds.label_figures import label_figures
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.step import ResultKey, Step, flags
from wsi_dino.run_folder import safe_name

_COMMAND = "chest-xray"
_IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")


class ChestXray:
    """`wsi-dino radiology chest-xray`; several sizes make Figure 1."""

    name = "chest-xray"
    commands: tuple[str, ...] = (_COMMAND,)
    unit_of_resampling = "patients"

    def steps(self, entry: Entry, encoders: Sequence[str], context: Context) -> list[Step]:
        """Return one command an encoder, all sizes in it."""
        return [self._step(entry, encoder, context) for encoder in encoders]

    def _step(self, entry: Entry, encoder: str, context: Context) -> Step:
        options = entry.options_of(_COMMAND)
        run, dataset = context.run_of(entry), table_or_form(entry)
        command = ["radiology", _COMMAND, "--dataset", dataset, "--root", str(entry.root), "--encoder", encoder]
        command += [*flags(options), "--run", str(run), *context.model_words(encoder)]
        name = entry.form or Path(dataset).stem
        folder = entry.folder / "radiology" / safe_name(name) / task_folder(options)
        results = {
            ResultKey(entry.name, "" if number == 0 else f"{px} px", encoder): (
                folder / f"{safe_name(encoder)}@{px}" / "metrics.json"
            )
            for number, px in enumerate(sizes_px(entry, encoder))
        }
        inputs = (entry.root, *((entry.labels,) if entry.labels else ()), *context.weights_inputs(encoder))
        return Step(f"{entry.folder.name}.{safe_name(encoder)}", self.name, entry.name, encoder, tuple(command),
                    results, inputs=inputs)  # fmt: skip

    def figures(self, metrics: Mapping[str, Any], folder: Path) -> dict[str, Figure]:
        """Return those of the label, or the mean over labels."""
        return label_figures(metrics)

    def protocol(self, metrics: Mapping[str, Any]) -> str:
        """Return split, view, probe, threshold."""
        protocol, images = metrics["protocol"], metrics["images"]
        probe = protocol["probe"]
        return (
            f"{images['used']} images; {protocol['split']}; {metrics['input_px']} px; linear probe on frozen features "
            f"({probe['optimiser']}, learning rate {probe['learning_rate']}, batches of {probe['batch_size']}, "
            f"{probe['n_epochs']} epochs); {protocol['intervals']}"
        )

    def work(self, entry: Entry, encoder: str) -> Work:
        """Count image files below the folder; each size sees all."""
        n_images = count_files(entry.root, _IMAGES)
        limit = int(entry.options_of(_COMMAND).get("limit", 0))
        n_images = min(n_images, limit) if limit else n_images
        sizes = sizes_px(entry, encoder)
        counted = f"{n_images} image files{' (limit)' if limit else ''}, {len(sizes)} sizes"
        mean_px = round((sum(px * px for px in sizes) / len(sizes)) ** 0.5)
        at_px = min(sizes, key=lambda px: abs(px - mean_px))
        return Work(n_images, "images", n_images * len(sizes), at_px, False, 1.0, counted,
                    "" if len(sizes) == 1 else f"all sizes at the rate of {at_px} px")  # fmt: skip


def sizes_px(entry: Entry, encoder: str) -> list[int]:
    """Return the sizes asked for, or the encoder's own."""
    given = entry.options_of(_COMMAND).get("size")
    if given is None:
        return [get_record(encoder).input_px]
    return [int(px) for px in (given if isinstance(given, list) else [given])]


def task_folder(options: Mapping[str, Any]) -> str:
    """Return the folder that ``--task`` puts between, if it is given."""
    return safe_name(str(options["task"])) if options.get("task") else ""


def table_or_form(entry: Entry) -> str:
    """Return what ``--dataset`` gets: the name of a published form, or the path of a table.

    Raises:
        ConfigError: neither is given.
    """
    if entry.form:
        return entry.form
    if entry.labels is None:
        raise ConfigError(f"ROOTS.yaml, {entry.name}: a dataset of your own needs labels: TABLE.csv.")
    return str(entry.labels)


def count_files(root: Path, endings: Sequence[str]) -> int:
    """Count files below a folder by their ending; hidden ones are not counted."""
    return sum(
        1 for path in root.rglob("*")
        if path.name.lower().endswith(tuple(endings)) and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip
