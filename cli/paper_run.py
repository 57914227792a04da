"""`wsi-dino paper run`: the paper's tables from the data and weights at hand, by the commands a user would type."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.interrupts import ctrl_c_waits
from wsi_dino.cli.launchers.task import start_bound, stop_bound
from wsi_dino.cli.launching import passed_on
from wsi_dino.cli.options import Device, DeviceOption, JsonOption, RunOption, WorkersOption
from wsi_dino.cli.remote_paths import refuse_address
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.paper.estimate import Estimate
    from wsi_dino.paper.kind import Context
    from wsi_dino.paper.plan import Plan
    from wsi_dino.paper.running import Outcome
    from wsi_dino.paper.state import PaperState
    from wsi_dino.paper.step import Step

_GRACE_S = 20.0  # a command with workers of its own gives them ten
_ESTIMATE_COLUMNS = ["dataset", "encoder", "items", "unit", "forwards", "hours", "disk_gb"]


def run(
    data: Annotated[
        Path, typer.Option("--data", help="ROOTS.yaml: names of datasets and their folders.", show_default=False)
    ],
    run: RunOption,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder",
            help="Encoder by name, or a network that learns from voxels (monai-unet, monai-vnet, monai-unetr, "
            "monai-swinunetr, unet3d); may be repeated.  [default: those of earlier commands on RUN]",
            show_default=False,
        ),
    ] = None,
    add_encoder: Annotated[
        list[str] | None,
        typer.Option("--add-encoder", help="One more than those RUN has had so far; may be repeated.",
                     show_default=False),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", metavar="N,N", help="Only what these tables need.  [default: all, Figure 3 and "
                     "datasets of your own]", show_default=False),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", "--dry-run", help="Print the plan and leave.")] = False,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="NAME=FILE", help="Checkpoint of an encoder; may be repeated.",
                     show_default=False),
    ] = None,
    weights_dir: Annotated[
        Path | None,
        typer.Option("--weights-dir", help="Folder of checkpoints, looked at before cache and hub.",
                     show_default=False),
    ] = None,
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="Run the commands inside this process: no start-up for each, but one that "
                     "crashes ends all."),
    ] = False,
    estimates: Annotated[
        bool, typer.Option("--estimate/--no-estimate", help="Measure rates for the plan; a second for each.")
    ] = True,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run what the paper's tables need, as far as data and weights are at hand.

    Prints the plan: each command, what it will take by rates measured here, and why the rest cannot be run. Then runs
    the commands, each once: killed and repeated, it goes on. Weights are never fetched: `wsi-dino weights fetch` does
    that. Writes RUN/paper.json, RUN/logs/ and each dataset's own run in RUN/runs/. `wsi-dino paper report --run RUN`
    makes the document. Exit code 1 when a command failed, or some of its items did.
    """
    from wsi_dino.paper.estimate import estimate_plan, totals
    from wsi_dino.paper.plan import make_plan

    refuse_address("paper run", run)
    before = _before(run, encoder)
    context = _context(data, run, _weights(weights), weights_dir, str(device), workers)
    made = make_plan(_encoders(encoder, add_encoder, before), context, _tables(table))
    run_command = in_this_process if in_process else in_its_own_process
    found = estimate_plan(made, context, run_command, console.say) if estimates else []
    if not as_json:
        _print_plan(made, context, found)
    if plan:
        reasons = _reasons(made, context, before)
        if as_json:
            console.print_json(_plan_record(made, context, found, totals(found)) | {"cells": reasons})
        else:
            _print_reasons(reasons)
        return
    outcomes = _run(made, context, before, run_command)
    _finish(made, context, outcomes, found, as_json=as_json)


def _before(run: Path, encoders: Sequence[str] | None) -> PaperState:
    """Return what earlier commands left; a broken file is written anew by a command that names encoders."""
    from wsi_dino.errors import ResultError
    from wsi_dino.paper.state import PaperState, read_state

    try:
        return read_state(run, must_exist=False)
    except ResultError as error:
        if not encoders:
            raise
        console.say(f"note: {error} Encoders and datasets of earlier commands are in it again when they are named.")
        return PaperState()


def _encoders(asked: Sequence[str] | None, added: Sequence[str] | None, before: PaperState) -> list[str]:
    from wsi_dino.paper.contestants import require_known

    names = list(dict.fromkeys([*(asked or before.encoders), *(added or [])]))
    if not names:
        raise ConfigError("`wsi-dino paper run`: name at least one --encoder, as in --encoder efficientnet-lite0.")
    for name in names:
        require_known(name)
    return names


def _tables(asked: Sequence[str] | None) -> list[int]:
    words = [word.strip() for text in asked or [] for word in text.split(",")]
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise ConfigError(f"--table {wrong[0]!r}: expected numbers from 1 to 10, as in --table 2,5.")
    return sorted({int(word) for word in words})


def _weights(given: Sequence[str] | None) -> dict[str, Path]:
    named = {}
    for text in given or []:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--weights {text}: expected NAME=FILE, as in dinov3-s=dinov3_vits16.pth.")
        named[name] = Path(path).resolve()
    return named


def _context(
    data: Path, run: Path, weights: Mapping[str, Path], weights_dir: Path | None, device: str, workers: int
) -> Context:
    from wsi_dino.paper.kind import Context
    from wsi_dino.paper.kinds import COMMANDS
    from wsi_dino.paper.roots import read_roots

    entries = read_roots(data, COMMANDS)
    folder = None if weights_dir is None else weights_dir.resolve()
    return Context(run.resolve(), entries, weights, folder, device, workers)


def _run(
    made: Plan, context: Context, before: PaperState, run_command: Callable[[Sequence[str], Path], int]
) -> list[Outcome]:
    from wsi_dino.paper.running import run_plan
    from wsi_dino.paper.snapshots import keep_snapshots
    from wsi_dino.paper.state import write_state
    from wsi_dino.run_folder import RunFolder

    roots = {name: entry.root for name, entry in context.entries.items()}
    number = {step.key: i for i, step in enumerate(made.steps, start=1)}

    def tell(step: Step, what: str) -> None:
        place = f"[{number[step.key]}/{len(made.steps)}] {step.key}"
        console.say(f"{place}: {step.shown(context.run, roots)}" if what == "run" else f"{place}: {_TOLD[what]}")

    def keep(outcomes: Sequence[Outcome]) -> None:
        write_state(context.run, made, context.entries, outcomes, before)
        if outcomes and outcomes[-1].fingerprints:
            step = outcomes[-1].step
            complaint = keep_snapshots(step, context.entries[step.dataset], RunFolder(context.run))
            if complaint:
                console.say(complaint)

    return run_plan(made, RunFolder(context.run), roots, run_command, tell, keep)


_TOLD = {"reuse": "done before", "done": "done", "partial": "done, some items failed", "failed": "FAILED",
         "waiting": "not run, since what it needs failed"}  # fmt: skip


def in_its_own_process(words: Sequence[str], log: Path) -> int:
    """Run a command line as a program of its own; what it says goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream, contextlib.ExitStack() as leaving:
        with ctrl_c_waits():
            process = start_bound([sys.executable, "-m", "wsi_dino.cli", *passed_on(words)], {}, stream, stream)
            leaving.callback(stop_bound, process, _GRACE_S)
        return process.wait()


def in_this_process(words: Sequence[str], log: Path) -> int:
    """Run a command line here; what it says goes to `log`."""
    from wsi_dino.cli.app import main

    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        try:
            main(passed_on(words))
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except Exception as error:  # one broken command must not end the others, as in a process of its own
            import traceback

            traceback.print_exc(file=stream)
            print(f"error: {type(error).__name__}: {error}", file=stream)
            return 70
    return 0


def _print_plan(made: Plan, context: Context, found: Sequence[Estimate]) -> None:
    from wsi_dino.paper.estimate import totals

    roots = {name: entry.root for name, entry in context.entries.items()}
    print(f"{len(made.steps)} commands, RUN = {context.run}")
    for step in made.steps:
        print(f"  {step.shown(context.run, roots)}")
    if found:
        print("\nWhat encoding alone takes, measured now on this machine:")
        console.print_table([_shown(estimate) for estimate in found], _ESTIMATE_COLUMNS)
        for estimate in found:
            notes = [estimate.measured_on, f"not in it: {estimate.left_out}" if estimate.left_out else ""]
            print(f"  {estimate.dataset}, {estimate.encoder}: {'; '.join(filter(None, notes))}")
        sums = totals(found)
        left_out = sums.pop("not_counted")
        print(f"in all: {', '.join(f'{_number(value)} {name}' for name, value in sums.items() if value)}")
        print(f"hours are of encoding alone; not in them: {'; '.join(left_out) or 'reading, probes and reports'}")
    for what, missing in (("dataset", made.missing_datasets), ("encoder", made.missing_encoders)):
        for name, why in missing.items():
            print(f"not run: {what} {name}: {why}")


def _reasons(made: Plan, context: Context, before: PaperState) -> list[dict[str, Any]]:
    from wsi_dino.paper.cells import Results, make_tables
    from wsi_dino.paper.document import reasons_by_table
    from wsi_dino.paper.state import planned_state

    results = Results(context.run, planned_state(context.run, made, context.entries, before))
    return reasons_by_table(make_tables(results))


def _print_reasons(reasons: Sequence[Mapping[str, Any]]) -> None:
    print("\nCells of the tables without a number of ours, and why:")
    for row in reasons:
        print(f"  Table {row['table']}: {row['cells']} cells: {row['reason']}")


def _shown(estimate: Estimate) -> dict[str, Any]:
    row = estimate.as_dict()
    return row | {key: None if row[key] is None else _number(row[key]) for key in ("forwards", "hours", "disk_gb")}


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _plan_record(made: Plan, context: Context, found: Sequence[Estimate], sums: Mapping[str, Any]) -> dict[str, Any]:
    roots = {name: entry.root for name, entry in context.entries.items()}
    return {
        "command": "paper run", "run": str(context.run), "encoders": list(made.encoders),
        "steps": [{"key": step.key, "command": step.shown(context.run, roots)} for step in made.steps],
        "estimates": [estimate.as_dict() for estimate in found], "totals": sums,
        "missing_datasets": dict(made.missing_datasets), "missing_encoders": dict(made.missing_encoders),
    }  # fmt: skip


def _finish(
    made: Plan, context: Context, outcomes: Sequence[Outcome], found: Sequence[Estimate], *, as_json: bool
) -> None:
    from wsi_dino.paper.estimate import totals

    failed = [outcome for outcome in outcomes if outcome.status != "done"]
    if as_json:
        record = _plan_record(made, context, found, totals(found))
        of_step = {o.step.key: {"status": o.status, "exit_code": o.exit_code, "reason": o.reason} for o in outcomes}
        record["steps"] = [step | of_step[step["key"]] for step in record["steps"]]
        console.print_json(record | {"n_failed": len(failed)})
    else:
        n_new = sum(outcome.is_new for outcome in outcomes)
        print(f"\n{len(outcomes)} commands: {len(outcomes) - len(failed)} done ({n_new} now), {len(failed)} not")
        for outcome in failed:
            print(f"  {outcome.step.key}: {_TOLD[outcome.status]}: {outcome.reason}")
        print(f"`wsi-dino paper report --run {context.run}` makes the document")
    console.leave(len(failed))
