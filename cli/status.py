"""`wsi-dino status`: how far a run is, who works on it and what failed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption

if TYPE_CHECKING:
    from wsi_dino.run_status import RunStatus, StageStatus, WorkerStatus

_MOST_LISTED = 40


def status(
    run: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Tell how far a run is, who works on it and what failed, from its files alone.

    Works at any time and from any machine that sees the folder. A worker is `hanging` when it lives and its work does
    not move on, `lost` when it gives no sign of life. Exit code 1 when an item failed or a worker hangs or is lost.
    """
    from wsi_dino.run_folder import RunFolder
    from wsi_dino.run_status import RunReader

    found = RunReader(RunFolder(run).require()).read()
    if as_json:
        console.print_json({"command": "status", "run": str(run), **found.to_record()})
    else:
        _print(found)
    n_failed = sum(stage.counts.get("failed", 0) for stage in found.stages)
    console.leave(n_failed + sum(worker.state != "working" for worker in found.workers))


def _print(found: RunStatus) -> None:
    if not found.stages:
        print("nothing has been worked on here")
    else:
        columns = ["stage", "items", "done", "empty", "failed", "left", "share_done", "hours_left"]
        console.print_table([_row(stage, found) for stage in found.stages], columns)
    for failure in found.failures[:_MOST_LISTED]:
        print(f"{failure['status']}: {failure['stage']}: {failure['item']}: {failure['reason']}")
    if len(found.failures) > _MOST_LISTED:
        print(f"... and {len(found.failures) - _MOST_LISTED} more; --json lists all")
    if found.workers:
        print()
        columns = ["worker", "state", "shard", "silent_s", "no_progress_s", "finished", "failed", "in_hand"]
        console.print_table([_worker_row(worker) for worker in found.workers], columns)
    else:
        print("nobody is at work")


def _row(stage: StageStatus, found: RunStatus) -> dict[str, object]:
    is_worked_on = any(stage.stage in worker.record.get("stages", {}) for worker in found.workers)
    hours = None if stage.left_s is None or not (is_worked_on or not stage.left) else stage.left_s / 3600
    counts = {state: stage.counts.get(state, 0) for state in ("done", "empty", "failed")}
    return {"stage": stage.stage, "items": stage.items, **counts, "left": stage.left,
            "share_done": stage.share_done, "hours_left": hours}  # fmt: skip


def _worker_row(worker: WorkerStatus) -> dict[str, object]:
    record = worker.record
    stages = record.get("stages", {}).values()
    return {
        "worker": f"{record.get('name') or ''} {worker.name}".strip(), "state": worker.state,
        "shard": record.get("shard"), "silent_s": round(worker.silent_s),
        "no_progress_s": round(float(record.get("progress_age_s") or 0)),
        "finished": sum(counts["finished"] for counts in stages), "failed": sum(counts["failed"] for counts in stages),
        "in_hand": ", ".join(f"{item['key']} for {item['for_s']} s" for item in record.get("in_hand", [])[:3]),
    }  # fmt: skip
