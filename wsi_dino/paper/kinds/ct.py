"""CT volumes with labels: CT-RATE, tables of one's own; linear probe and nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_dino.encoders.registry import get_record
from wsi_dino.paper.kind import Context, Figure, Work
from wsi_dino.paper.kinds.chest import count_files, table_or_form, task_folder
from wsi_dino.paper.kinds.label_figures import label_figures
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.step import ResultKey, Step, flags
from wsi_dino.run_folder import safe_name

_COMMAND = "ct"
PROBES = {"linear": "Linear Probing", "knn": "k-NN"}
_VOLUMES = (".nii", ".nii.gz")
_HEADS_READ = 12
_OF_KNN = ("k", "metric", "weighting")


class Ct:
    """`wsi-dino radiology ct`, once with each probe of the paper."""

    name = "ct"
    commands: tuple[str, ...] = (_COMMAND,)
    unit_of_resampling = "patients"

    def steps(self, entry: Entry, encoders: Sequence[str], context: Context) -> list[Step]:
        """Return a command for each encoder and probe; the second finds the first one's features."""
        steps: list[Step] = []
        for encoder in encoders:
            of_encoder: list[Step] = []
            for probe in PROBES:
                needs = tuple(step.key for step in of_encoder)
                of_encoder.append(self._step(entry, encoder, probe, needs, context))
            steps += of_encoder
        return steps

    def _step(self, entry: Entry, encoder: str, probe: str, needs: tuple[str, ...], context: Context) -> Step:
        options = entry.options_of(_COMMAND)
        options.pop("probe", None)
        if probe != "knn":
            options = {name: value for name, value in options.items() if name not in _OF_KNN}
        dataset = table_or_form(entry)
        command = ["radiology", _COMMAND, "--dataset", dataset, "--root", str(entry.root), "--encoder", encoder]
        command += ["--probe", probe, *flags(options), "--run", str(context.run_of(entry))]
        px = int(options.get("size", get_record(encoder).input_px))
        window, pool = str(options.get("window", "wide")), str(options.get("pool", "mean"))
        name = safe_name("-".join([f"{encoder}@{px}", window, pool, probe]))
        folder = entry.folder / "radiology" / safe_name(entry.form or Path(dataset).stem)
        folder = folder / task_folder(options) / name
        inputs = (entry.root, *((entry.labels,) if entry.labels else ()), *context.weights_inputs(encoder))
        return Step(
            f"{entry.folder.name}.{safe_name(encoder)}.{probe}", self.name, entry.name, encoder,
            (*command, *context.model_words(encoder)),
            {ResultKey(entry.name, probe, encoder): folder / "metrics.json"}, needs=needs, inputs=inputs,
        )  # fmt: skip

    def figures(self, metrics: Mapping[str, Any], folder: Path) -> dict[str, Figure]:
        """Return those of the label, or the mean over labels."""
        return label_figures(metrics)

    def protocol(self, metrics: Mapping[str, Any]) -> str:
        """Return split, view, pooling, model."""
        protocol, images = metrics["protocol"], metrics["images"]
        return (
            f"{images['used']} volumes, {images['slices']} slices; {protocol['split']}; {protocol['view_in_words']}; "
            f"{protocol['pool']} over the slices; {protocol['model']}; {protocol['intervals']}"
        )

    def work(self, entry: Entry, encoder: str) -> Work:
        """Count files; slices are the mean of some heads."""
        paths = sorted(path for path in entry.root.rglob("*.nii*") if not path.name.startswith("."))
        n_volumes = count_files(entry.root, _VOLUMES)
        limit = int(entry.options_of(_COMMAND).get("limit", 0))
        n_volumes = min(n_volumes, limit) if limit else n_volumes
        chosen = paths[:: max(1, len(paths) // _HEADS_READ)][:_HEADS_READ]
        depth = float(np.mean([_n_slices(path) for path in chosen])) if chosen else 0.0
        px = entry.options_of(_COMMAND).get("size")
        counted = f"{n_volumes} NIfTI files, {depth:.1f} slices each (mean of {len(chosen)} heads)"
        left_out = "" if paths else "DICOM series are not counted"
        # of each volume three vectors stay, of all its slices none
        return Work(n_volumes, "volumes", n_volumes * depth, None if px is None else int(px), False,
                    3 / depth if depth else 0.0, counted, left_out)  # fmt: skip


def _n_slices(path: Path) -> int:
    """Return voxels along the last axis, the slices of files as they are passed on."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        return int(image.shape[2])
    except Exception:  # a broken file is told by the command itself
        return 0
