"""`wsi-dino paper`: the published tables of the benchmark paper as data, and as a document that runs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_dino.cli import console
from wsi_dino.cli.grouped_help import GroupedCommand
from wsi_dino.cli.launching import launching_steps
from wsi_dino.cli.options import JsonOption
from wsi_dino.cli.paper_report import report as paper_report
from wsi_dino.cli.paper_run import run as paper_run

if TYPE_CHECKING:
    from wsi_dino.evaluation.published.anomalies import Anomaly, KnownFinding
    from wsi_dino.evaluation.published.verification import CheckResult, Verification

_WIDTH = 100


def paper_app() -> typer.Typer:
    """Return the group of commands."""
    app = typer.Typer(
        name="paper", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
        help="The benchmark paper: do its tables agree with themselves, and what comes out here?",
    )  # fmt: skip
    for name, function in (("verify", verify), ("run", launching_steps(paper_run)), ("report", paper_report)):
        app.command(name, cls=GroupedCommand, help=function.__doc__)(function)
    return app


def verify(
    tables: Annotated[
        Path | None,
        typer.Option(
            "--tables",
            help="Folder with a copy of the CSV and YAML files, to try something; default: as shipped.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute what the published tables must obey.

    Averages, sums, counts, shares of positives that rows imply, what the text says of the tables. Each figure that
    does not fit is told as printed and as recomputed, with the number of the known inconsistency it belongs to
    (docs/paper.md). Nothing is reproduced: only figures that the paper prints are compared with each other.

    Exit code 0 when exactly the known inconsistencies are found; 1 when there is a new one, or a known one is
    gone; 2 when the files cannot be read.
    """
    from wsi_dino.evaluation.published.printed_table import FOLDER, SOURCE
    from wsi_dino.evaluation.published.verification import verify_paper

    folder = tables or FOLDER
    answer = verify_paper(folder)
    if as_json:
        console.print_json({"command": "paper verify", "source": SOURCE, "folder": str(folder), **answer.to_record()})
    else:
        _print_answer(answer, SOURCE)
    console.leave(len(answer.new) + len(answer.gone))


def _print_answer(answer: Verification, source: str) -> None:
    print(f"The published tables of {source}: {len(answer.results)} checks.")
    print("Of what does not hold: [number of the known inconsistency, or NEW] where: printed -> recomputed.")
    for result in answer.results:
        _print_check(result, answer)
    print("\nKnown from reading, which no check here finds:")
    for anomaly in answer.anomalies:
        if anomaly.kind == "reading":
            _print_line(f"  [{anomaly.id}]", _reading(anomaly))
    if answer.gone:
        print("\nKnown, but not found as written in the list:")
        for number, finding in answer.gone:
            _print_line(f"  [{number}]", f"{finding.check}: {_finding(finding)}")
    print(f"\n{_conclusion(answer)}")


def _print_check(result: CheckResult, answer: Verification) -> None:
    from wsi_dino.evaluation.published.verification import finding_of

    counts = [f"{result.count('holds')} hold"]
    counts += [f"{result.count('rounding')} off by rounding"] * bool(result.count("rounding"))
    counts += [f"{result.count('differs')} do not"] * bool(result.count("differs"))
    print(f"\n{result.check.title}")
    print(f"  {result.check.name}: {len(result.outcomes)} looked at, {', '.join(counts)}")
    said = ""
    for outcome in result.outcomes:
        if outcome.verdict != "holds":
            finding = finding_of(result.check, outcome)
            number = answer.known.get(finding)
            claim = answer.claims.get(finding.row) if finding.check == "claims" else None
            if claim is not None and claim.quote != said:
                said = claim.quote
                print(
                    textwrap.fill(
                        f'"{said}" (section {claim.section})', _WIDTH, initial_indent="  ", subsequent_indent="   "
                    )
                )
            _print_line(f"  [{'NEW' if number is None else number}]", _finding(finding))


def _finding(finding: KnownFinding) -> str:
    where = _where(finding.table or "text", "" if finding.check == "claims" else finding.row, finding.column)
    rounding = " (rounding explains it)" if finding.verdict == "rounding" else ""
    return f"{where}: {finding.printed} -> {finding.recomputed}{rounding}"


def _reading(anomaly: Anomaly) -> str:
    return f"{anomaly.title} ({_where(anomaly.table, anomaly.cell)})"


def _where(table: str, *parts: str) -> str:
    name = {"": "", "text": "text"}.get(table, f"Table{'s' * (',' in table)} {table}")
    return ", ".join(part for part in (name, *parts) if part)


def _print_line(mark: str, text: str) -> None:
    print(textwrap.fill(text, _WIDTH, initial_indent=f"{mark:<8}", subsequent_indent=" " * 10))


def _conclusion(answer: Verification) -> str:
    n_found = len(answer.known) - len(answer.gone)
    if answer.as_known:
        n_by_program = len(set(answer.known.values()))
        return f"As known: {n_found} findings of {n_by_program} known inconsistencies, and no other."
    return f"NOT as known: {len(answer.new)} new, {len(answer.gone)} gone, {n_found} as in the list."
