"""Segmentation of volumes: Medical Segmentation Decathlon, AutoPET-II, HECKTOR 2022, folders of one's own."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.encoders.registry import get_record
from wsi_dino.errors import ResultError
from wsi_dino.evaluation.bootstrap import percentile_bounds
from wsi_dino.paper.kind import Context, Figure, Work
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.step import ResultKey, Step, flags
from wsi_dino.run_folder import safe_name

_COMMAND = "segment"
NETWORKS = ("monai-unet", "monai-vnet", "monai-unetr", "monai-swinunetr")
MODALITIES = {"ct": "CT", "pet": "PET", "ct+pet": "CT+PET"}
_WITH_MODALITIES = ("autopet2", "hecktor2022")
# metric of the tables: key in metrics.json, column of cases.csv, factor, unit
_FIGURES = {
    "dice": ("dice", "dice", 100, "percent"), "hd95": ("hd95_mm", "hd95_mm", 1, "mm"),
    "precision": ("precision", "precision", 100, "percent"), "recall": ("recall", "recall", 100, "percent"),
}  # fmt: skip
_N_RESAMPLES, _SEED = 2000, 0
_HEADS_READ = 12


class Segment:
    """`wsi-dino radiology segment`, of PET-CT once with each choice of channels."""

    name = "segment"
    commands: tuple[str, ...] = (_COMMAND,)
    unit_of_resampling = "patients"

    def steps(self, entry: Entry, encoders: Sequence[str], context: Context) -> list[Step]:
        """Return a command for each encoder, or network that learns from voxels, and choice of channels."""
        return [self._step(entry, encoder, variant, context) for encoder in encoders for variant in variants_of(entry)]

    def _step(self, entry: Entry, encoder: str, variant: str, context: Context) -> Step:
        options = entry.options_of(_COMMAND)
        options.pop("channels", None)
        form, is_network = entry.form or "nnunet", encoder in NETWORKS
        command = ["radiology", _COMMAND, "--dataset", form, "--root", str(entry.root)]
        command += ["--model" if is_network else "--encoder", encoder, "--as", safe_name(encoder)]
        command += ["--channels", variant] if variant else []
        command += [*flags(_for_network(options) if is_network else options), "--run", str(context.run_of(entry))]
        command += context.running_words() if is_network else context.model_words(encoder)
        name = entry.root.resolve().name if form == "nnunet" else form
        folder = entry.folder / "segmentation" / safe_name(f"{name}-{variant}" if variant else name)
        key = ".".join([entry.folder.name, safe_name(encoder), *([variant] if variant else [])])
        result = {ResultKey(entry.name, variant, encoder): folder / safe_name(encoder) / "metrics.json"}
        inputs = (entry.root, *context.weights_inputs(encoder))
        return Step(key, self.name, entry.name, encoder, tuple(command), result, inputs=inputs)

    def figures(self, metrics: Mapping[str, Any], folder: Path) -> dict[str, Figure]:
        """Return means over cases, intervals from the rows of ``cases.csv``."""
        rows = _rows(folder / "cases.csv")
        figures = {}
        for metric, (key, column, factor, unit) in _FIGURES.items():
            found = metrics[key]
            mean = found["mean"]
            low, high = _interval(rows, column)
            named = found.get("convention") or f"{found.get('definition')}; one mask empty: {found.get('empty_masks')}"
            counted = f"{found['n_valid']} of {found['n_total']} have a value" if "n_valid" in found else ""
            why = "" if low is not None else "one patient alone, or no value: no interval"
            figures[metric] = Figure(
                None if mean is None else factor * mean, None if low is None else factor * low,
                None if high is None else factor * high, unit, "; ".join(filter(None, [named, counted])), why,
            )  # fmt: skip
        return figures

    def protocol(self, metrics: Mapping[str, Any]) -> str:
        """Return split, averaging, decoder, training."""
        protocol = metrics["protocol"]
        model, training = protocol["model"], protocol["training"]
        decoder = model.get("decoder") or model.get("kind", "network")
        limit = "" if protocol.get("limit") is None else f"; a trial with {protocol['limit']} cases"
        return (
            f"{metrics['n_cases']} cases, channels {'+'.join(metrics['channels'])}; {protocol['split']}, folds "
            f"{', '.join(str(fold['fold']) for fold in metrics['folds'])}; {decoder}, {training['epochs']} epochs; "
            f"{protocol['averaging']}; 95 % percentile bootstrap over patients, {_N_RESAMPLES} draws{limit}"
        )

    def work(self, entry: Entry, encoder: str) -> Work:
        """Count cases; sizes of slices are those of some heads, as the command plans them."""
        from wsi_dino.segmentation.datasets.opening import open_dataset

        if encoder in NETWORKS:
            return Work(0, "volumes", 0.0, None, True, 0.0, "", "a network that learns from voxels encodes nothing")
        options = entry.options_of(_COMMAND)
        dataset = open_dataset(entry.form or "nnunet", entry.root)
        cases = [case for case in dataset.cases if not case.problem]
        n_cases = min(len(cases), int(options.get("limit", len(cases))))
        chosen = cases[:: max(1, len(cases) // _HEADS_READ)][:_HEADS_READ]
        heads = [head for head in (_head(case.grid_file.path) for case in chosen) if head is not None]
        if not heads:
            return Work(n_cases, "volumes", 0.0, None, True, 0.5, f"{n_cases} cases", "no head could be read")
        depth = float(np.mean([shape[2] for shape, _ in heads]))
        side_px = _side_px(heads, options, encoder)
        views = int(options.get("views", 2)) * len(variants_of(entry))
        counted = f"{n_cases} cases, {depth:.1f} slices each, {side_px} px (of {len(heads)} heads), {views} views"
        return Work(n_cases, "volumes", n_cases * depth * views, side_px, True, 0.5, counted, "training of decoders")


def variants_of(entry: Entry) -> tuple[str, ...]:
    """Return the choices of channels: three of PET-CT, all channels of others, or what ROOTS.yaml says."""
    given = entry.options_of(_COMMAND).get("channels")
    if given is not None:
        return tuple(map(str, given)) if isinstance(given, list) else (str(given),)
    return tuple(MODALITIES) if entry.form in _WITH_MODALITIES else ("",)


def _for_network(options: Mapping[str, Any]) -> dict[str, Any]:
    of_encoders = ("views", "layers", "patch-mm", "max-px", "decoder", "image-skip", "crop-cells", "channels-meet")
    return {name: value for name, value in options.items() if name not in of_encoders}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise ResultError(f"Reading {path}: {error.strerror}. Run the same command again.") from error


def _interval(rows: Sequence[Mapping[str, str]], column: str) -> tuple[float | None, float | None]:
    """Return bounds of the mean over cases, patients drawn with replacement."""
    cases: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = row.get(column, "")
        if value not in ("", "nan", "inf"):
            cases.setdefault((row["patient_id"], row["case_id"]), []).append(float(value))
    patients = sorted({patient for patient, _ in cases})
    if len(patients) < 2:
        return None, None
    means = [(patient, float(np.mean(values))) for (patient, _), values in sorted(cases.items())]
    total = np.array([sum(mean for of, mean in means if of == patient) for patient in patients])
    n_cases = np.array([sum(of == patient for of, _ in means) for patient in patients])
    drawn = np.random.default_rng(_SEED).multinomial(len(patients), np.full(len(patients), 1 / len(patients)),
                                                     size=_N_RESAMPLES)  # fmt: skip
    low, high = percentile_bounds((drawn @ total) / (drawn @ n_cases))
    return float(low), float(high)


def _head(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        return tuple(image.shape[:3]), tuple(float(mm) for mm in image.header.get_zooms()[:3])
    except Exception:  # a broken file is told by the command itself
        return None


def _side_px(heads: Sequence[Any], options: Mapping[str, Any], encoder: str) -> int:
    from wsi_dino.segmentation.slice_geometry import default_patch_mm, plan_slice

    record = get_record(encoder)
    patch_px = record.patch_size or 16
    cell_px = max(patch_px, record.input_multiple_px or 1)
    extents = [max(shape[0] * mm[0], shape[1] * mm[1]) for shape, mm in heads]
    spacings = [(mm[0] + mm[1]) / 2 for _, mm in heads]
    max_px = int(options.get("max-px", 448)) // cell_px * cell_px
    patch_mm = float(options["patch-mm"]) if "patch-mm" in options else default_patch_mm(
        extents, spacings, patch_px=patch_px, voxels_per_patch=3.5, max_px=max_px)  # fmt: skip
    sides = [
        plan_slice((shape[0], shape[1]), (mm[0], mm[1]), patch_mm=patch_mm, patch_px=patch_px, cell_px=cell_px).side_px
        for shape, mm in heads
    ]
    return int(np.median(sides)) // cell_px * cell_px
