"""What `wsi-dino radiology ct` does once all is checked: each encoder at each size, features then probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino import share
from wsi_dino.cli import console
from wsi_dino.cli.probe_adapting import adapt_request
from wsi_dino.cli.probe_options import print_labels, say_failures

if TYPE_CHECKING:
    from wsi_dino.cli.probe_options import ProbedEncoder
    from wsi_dino.encoders.encoder import Encoder
    from wsi_dino.radiology.adapt_request import AdaptRequest
    from wsi_dino.radiology.ct_embedding import CtEmbedOutcome
    from wsi_dino.radiology.ct_folds import CtSpec, ProbedFolds
    from wsi_dino.radiology.ct_slices import SliceSpec
    from wsi_dino.radiology.ct_task import CtTask
    from wsi_dino.radiology.datasets.volume_row import VolumeTable
    from wsi_dino.run_folder import RunFolder

_VOLUME_COLUMNS = (
    "volume_id", "patient_id", "status", "reason", "n_slices", "shape", "spacing_mm", "stored_axes", "obliquity_deg",
    "hu_state", "hu_reason", "rescale", "remarks", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class CtAsked:
    """Everything that was asked for.

    Attributes:
        run: the run folder.
        table: the data set.
        encoders: those to judge, with their sizes.
        view: fields of `SliceSpec` as typed.
        spec: how features become figures.
        task: name of these labels, or "".
        device: where encoders run.
        workers: threads of the encoder.
        readers: threads that decode volumes.
        command: as typed, for the report.
        with_pictures: show slices, patches and similarities in the report.
        adapting: ``--adapt`` and its options as typed.
    """

    run: RunFolder
    table: VolumeTable
    encoders: tuple[ProbedEncoder, ...]
    view: Mapping[str, str]
    spec: CtSpec
    task: str
    device: str
    workers: int
    readers: int
    command: str
    with_pictures: bool = True
    adapting: Mapping[str, Any] = field(default_factory=lambda: {"adapt": None})

    @property
    def folder(self) -> Path:
        """Of all results."""
        from wsi_dino.radiology.chest_run import task_folder

        return task_folder(self.run, self.table.name, self.task)

    @property
    def study_folder(self) -> Path:
        """Of the table and picture of several encoders or sizes, for one window, pool and probe."""
        from wsi_dino.run_folder import safe_name

        window = self.view["window"].replace(":", "to")
        return self.folder / safe_name("-".join(("study", window, self.spec.pool, self.spec.probe)))


def run_ct(asked: CtAsked) -> tuple[list[dict[str, Any]], int]:
    """Return the content of each metrics.json (or what a shard did), and how many volumes failed.

    A window that makes no sense is refused before anything is computed.
    """
    view = _view(asked.view)
    plan = [(encoder, side, _adaptation(asked, encoder, side)) for encoder in asked.encoders for side in encoder.sides]
    results: list[dict[str, Any]] = []
    failed: set[str] = set()
    for encoder, side, adaptation in plan:
        console.say(f"{encoder.name} at {side} px")
        made, reasons = _one(asked, encoder.settings, side, view, adaptation)
        results += made
        failed |= set(reasons)
    if len(results) > 1 and all("labels" in result for result in results):  # a shard has none
        from wsi_dino.evaluation.size_study import write_study

        write_study(asked.study_folder, results)
    return results, len(failed)


def _view(view: Mapping[str, str]) -> SliceSpec:
    from wsi_dino.radiology.ct_slices import SliceSpec
    from wsi_dino.volumes.windows import parse_window

    parse_window(view["window"])
    return SliceSpec.model_validate(dict(view))


def _adaptation(asked: CtAsked, encoder: ProbedEncoder, side: int) -> AdaptRequest | None:
    return adapt_request(
        asked.adapting, encoder, side, device=asked.device, workers=asked.workers, seed=asked.spec.seed, batch_bags=4
    )


def _one(
    asked: CtAsked, settings: Mapping[str, Any], side: int, view: SliceSpec, adaptation: AdaptRequest | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what a shard did, or the figures of the frozen encoder and those of the adapted one."""
    from wsi_dino.encoders.loading import load_encoder
    from wsi_dino.radiology.ct_embedding import embed_volumes
    from wsi_dino.radiology.ct_features import CtFeatures
    from wsi_dino.radiology.ct_task import CtTask

    arguments = {**settings, "input_px": side}
    encoder = load_encoder(**arguments, device=asked.device, workers=asked.workers)
    features = CtFeatures(asked.run, asked.table.name, encoder.spec, encoder.identity(), view)
    rows = asked.table.rows
    with console.progress("encode", total=len(rows), unit="volumes") as report:
        outcome = embed_volumes(
            features, encoder, rows,
            with_slices=asked.spec.pool == "attention", readers=asked.readers, report=report,
        )  # fmt: skip
    _say(outcome)
    reasons = {str(row["volume_id"]): str(row["reason"]) for row in outcome.failed}
    if share.current() is not None:
        return [_shard_result(outcome)], reasons
    volumes = {str(row["volume_id"]): row for row in outcome.rows}
    frozen = CtTask(asked.table, features, volumes, asked.spec, asked.task, adapter=encoder.adapter)
    results = [_judged(asked, frozen, encoder, outcome)]
    if adaptation is not None:
        from wsi_dino.radiology.ct_adapted import adapt_volumes

        results.append(_judged(asked, *adapt_volumes(frozen, adaptation, readers=asked.readers), outcome))
    return results, reasons


def _shard_result(outcome: CtEmbedOutcome) -> dict[str, Any]:
    return {
        "shard": str(share.current()),
        "volumes": {"done": len(outcome.rows) - len(outcome.failed), "failed": len(outcome.failed),
                    "kept": outcome.n_kept},
        "slices": outcome.n_slices,
        "seconds": round(outcome.seconds, 3),
    }  # fmt: skip


def _judged(asked: CtAsked, task: CtTask, encoder: Encoder, outcome: CtEmbedOutcome) -> dict[str, Any]:
    from wsi_dino.radiology.ct_page import render_ct_page
    from wsi_dino.radiology.ct_pictures import ct_pictures
    from wsi_dino.radiology.ct_task import judge_volumes

    asked.run.write_table(task.folder / "volumes.csv", outcome.rows, _VOLUME_COLUMNS)

    def render(metrics: Mapping[str, Any], probed: ProbedFolds) -> str:
        pictures = ct_pictures(task, encoder, metrics, probed.folds) if asked.with_pictures else ()
        return render_ct_page(metrics, probed, pictures, asked.command)

    return judge_volumes(task, render)


def _say(outcome: CtEmbedOutcome) -> None:
    if outcome.n_slices:
        n_made = len(outcome.rows) - outcome.n_kept - len(outcome.failed)
        console.say(
            f"{outcome.n_slices} slices of {n_made} volumes encoded in "
            f"{outcome.seconds:.1f} s, {outcome.n_slices / outcome.seconds:.1f} slices/s; reading took "
            f"{outcome.reading_s:.1f} s and encoding {outcome.encoding_s:.1f} s of it"
        )
    done = [row for row in outcome.rows if row["status"] == "done"]
    reasons = [f"{row['hu_state']}: {row['hu_reason']}" for row in done]
    for reason in sorted(set(reasons)):
        console.say(f"Hounsfield units of {reasons.count(reason)} volumes {reason}")
    say_failures([(row["volume_id"], row["reason"]) for row in outcome.failed], "volumes.csv")


def print_results(results: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print a table a combination."""
    for result in results:
        if "labels" not in result:
            counts = ", ".join(f"{n} {state}" for state, n in result["volumes"].items())
            print(f"shard {result['shard']}: {counts}, {result['slices']} slices in {result['seconds']:.1f} s")
            continue
        protocol = result["protocol"]
        what = f"{result['dataset']} from {result['encoder']} at {result['input_px']} px"
        print(f"{what}, {protocol['pool']}, {protocol['model']}")
        print_labels(result)
    print(f"results: {folder}")
