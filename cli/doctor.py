"""`wsi-dino doctor`: check a run, or the installation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino import __version__
from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption
from wsi_dino.run_folder import RunFolder

if TYPE_CHECKING:
    from wsi_dino.file_check import Finding, RunReport
    from wsi_dino.install_check import InstallFinding

_SHOWN = 50


def doctor(
    ctx: typer.Context,
    run: Annotated[
        Path | None, typer.Argument(help="Folder of the run; without it the installation is checked.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read the heads of feature files only, not all values.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a run, or the installation.

    Checked are tiles, contours, thumbnails, features (checksum, finite values, count, origin), models,
    tables, and what killed commands left behind. Nothing is changed. Exit code 1 when there is a problem.
    """
    was_named = getattr(ctx.get_parameter_source("run"), "name", "") == "COMMANDLINE"
    installation = [] if was_named else _check_installation()
    report = _check_run(run, quick) if run is not None and (was_named or run.is_dir()) else None
    n_problems = sum(finding.state == "problem" for finding in installation)
    n_problems += len(report.problems) if report else 0
    if as_json:
        console.print_json(_summary(run, installation, report, n_problems))
    else:
        _print_installation(installation)
        if report is not None and run is not None:
            _print_report(run, report)
    console.leave(n_problems)


def _check_installation() -> list[InstallFinding]:
    from wsi_dino.install_check import check_installation

    console.say("Loading the libraries ...")
    return check_installation()


def _check_run(run: Path, quick: bool) -> RunReport:
    from wsi_dino.run_check import check_run

    with console.progress("checking", unit="files") as progress:
        return check_run(RunFolder(run), quick=quick, on_file=lambda path: progress(1, text=path.name))


def _print_installation(findings: list[InstallFinding]) -> None:
    if findings:
        print(f"wsi-dino {__version__}")
    for finding in findings:
        print(f"  {finding.state:<8}{finding.name}: {finding.text}")
        if finding.remedy:
            print(f"  {'':<8}  {finding.remedy}")


def _print_report(run: Path, report: RunReport) -> None:
    looked_at = ", ".join(f"{count} {what}" for what, count in report.counts.items())
    print(f"{run}: looked at {looked_at or 'nothing: the run is empty'}.")
    _print_findings(report.problems, "problem")
    _print_findings(report.notes, "note")
    if not report.problems:
        print("No problem found.")
        return
    print(f"{len(report.problems)} problems. What to do, in this order:")
    for command in report.commands:
        print(f"  {command}")
    print("Each command redoes what is wrong or missing and keeps the rest; give it the options of the first time.")


def _print_findings(findings: list[Finding], kind: str) -> None:
    for finding in findings[:_SHOWN]:
        print(f"  {kind}: {finding.path}: {finding.text}")
    if len(findings) > _SHOWN:
        print(f"  ... and {len(findings) - _SHOWN} more of the kind; --json lists all")


def _summary(
    run: Path | None, installation: list[InstallFinding], report: RunReport | None, n_problems: int
) -> dict[str, Any]:
    from dataclasses import asdict

    summary: dict[str, Any] = {"command": "doctor", "n_problems": n_problems}
    if installation:
        summary["installation"] = [asdict(finding) for finding in installation]
    if report is not None:
        summary |= {
            "run": run,
            "checked": report.counts,
            "problems": [asdict(finding) for finding in report.problems],
            "notes": [asdict(finding) for finding in report.notes],
            "redo": report.commands,
        }
    return summary
