"""`wsi-dino predict`: apply the models of a task to new slides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import Device, DeviceOption, JsonOption, RunOption, WorkersOption

if TYPE_CHECKING:
    from wsi_dino.mil.prediction import Ensemble

_LONG_TABLE = 40


def predict(
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            help="RUN/mil/TASK/ENCODER of a finished `mil`, all folds together; or one fold-K.safetensors of it.",
            show_default=False,
        ),
    ],
    run: RunOption,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Apply the models of a task to every slide of a run.

    The score is the mean probability (risk, value) over the folds' models, cut at the mean of their thresholds. Writes
    RUN/predictions/TASK/ENCODER/predictions.csv. Features of another encoder, pooling or weights than in
    training are refused. Exit code 1 when the features of a slide are broken or empty.
    """
    from wsi_dino.cli.mil import resolve_mil_device
    from wsi_dino.mil.prediction import load_ensemble, predict_run
    from wsi_dino.run_folder import RunFolder

    ensemble = load_ensemble(model)
    with console.progress("predict") as progress:
        table, rows = predict_run(
            RunFolder(run).require(), ensemble, device=resolve_mil_device(str(device)), threads=workers or None,
            report=progress,
        )  # fmt: skip
    failed = [row for row in rows if row["status"] != "done"]
    n_seen = sum(bool(row.get("seen_in_training")) for row in rows)
    counts = {"n_slides": len(rows), "n_failed": len(failed), "n_seen_in_training": n_seen}
    threshold = ensemble.threshold
    if as_json:
        head = {"command": "predict", "run": str(run), "task": ensemble.task, "encoder": ensemble.encoder}
        models = {"n_models": len(ensemble.models), "threshold": threshold}
        console.print_json({**head, **models, **counts, "table": str(table), "rows": rows})
    else:
        shown = rows if len(rows) <= _LONG_TABLE else failed
        if shown:
            console.print_table(list(shown), _shown_columns(ensemble))
        for row in failed:
            print(f"{row['status']}: {row['slide_id']}: {row['reason']}")
        if n_seen:
            print(
                f"{n_seen} of these slides were in the training of a model: their scores do not tell how it does on "
                "new ones. `mil` wrote held-out scores to its own predictions.csv."
            )
        cut = "" if threshold is None else f", cut at {threshold:.3f}"
        print(f"{len(rows) - len(failed)} of {len(rows)} slides by {len(ensemble.models)} models{cut}. Table: {table}")
    console.leave(len(failed))


def _shown_columns(ensemble: Ensemble) -> list[str]:
    if ensemble.config.kind.kind == "classes":
        return ["slide_id", "status", "score", "predicted"]
    hidden = {"reason", "seen_in_training", *ensemble.fold_names}
    return [name for name in ensemble.columns() if name not in hidden]
