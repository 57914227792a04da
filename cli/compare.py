"""`wsi-dino compare`: encoders side by side on the same folds, with tests of their differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption, RunOption
from wsi_dino.cli.project_file import read_project_file
from wsi_dino.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    from wsi_dino.run_folder import RunFolder

_PAIRS = ["first", "second", "AUC difference", "95 % interval", "p DeLong", "Holm", "p permutation", "Holm "]


def compare(
    run: RunOption,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="Task that `mil` has finished; may be repeated; all-bcnb: every one of BCNB.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder", show_default=False,
            help="Whose results, ENCODER+MODEL of a model other than abmil; may be repeated.  [default: all there are]",
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=100, help="Resamples of patients for intervals.")
    ] = 2000,
    permutations: Annotated[
        int, typer.Option("--permutations", min=99, help="Swaps of the permutation test.")
    ] = 99_999,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of bootstrap and permutation.")] = 0,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Compare encoders that `mil` ran on the same folds.

    Side by side with intervals; paired differences with DeLong's and a permutation test, corrected by Holm; bar and
    radar charts; the paper's figures beside, where it has the task. Writes RUN/mil/TASK/comparison/: report.html,
    comparison.json, comparison.csv and each picture as SVG and PNG. Results of other folds are refused.
    """
    from wsi_dino.evaluation.comparison import Resampling, compare_tasks
    from wsi_dino.evaluation.comparison_report import make_comparison, write_comparison
    from wsi_dino.evaluation.task_result import COMPARISON_FOLDER, read_result
    from wsi_dino.run_folder import RunFolder, safe_name

    folder = RunFolder(run).require()
    tasks = _tasks(folder, task or [])
    results = [[read_result(path) for path in _folders(folder, name, encoder or [])] for name in tasks]
    resampling = Resampling(bootstrap, permutations, seed)
    console.say(f"compare: {', '.join(tasks)}")
    sections = compare_tasks(results, resampling)
    comparison = make_comparison(sections, resampling)
    name = task[0] if task and len(task) == 1 else "+".join(tasks)
    written = write_comparison(folder.path / "mil" / safe_name(name) / COMPARISON_FOLDER, comparison)
    if as_json:
        head = {"command": "compare", "run": str(run), "report": str(written[-1]), "files": list(map(str, written))}
        console.print_json({**head, "tasks": sections})
    else:
        for section in sections:
            _print_section(section)
        print(f"report: {written[-1]}")


def _tasks(run: RunFolder, asked: list[str]) -> list[str]:
    from wsi_dino.mil.tasks import expand_task

    present = _present(run)
    if not asked:
        if len(present) == 1:
            return present
        known = f"Tasks there are: {', '.join(present)}." if present else "Run `wsi-dino mil` first."
        raise ConfigError(f"Which task is to be compared? Give --task NAME; it may be repeated. {known}")
    project = read_project_file()
    tasks: list[str] = []
    for name in asked:
        members = expand_task(name, project.tasks if project else {})
        tasks += [member for member in members if len(members) == 1 or member in present]
        left_out = sorted(set(members) - set(present))
        if left_out and len(members) > 1:
            console.say(f"note: {name} is compared without {', '.join(left_out)}: `mil` has not run them here.")
    if not tasks:
        raise ConfigError(f"Comparing {', '.join(asked)} in {run.path}: no such task has results. `mil` makes them.")
    return list(dict.fromkeys(tasks))


def _present(run: RunFolder) -> list[str]:
    from wsi_dino.evaluation.task_result import find_results

    return sorted(folder.name for folder in (run.path / "mil").glob("*/") if find_results(folder))


def _folders(run: RunFolder, task: str, encoders: list[str]) -> list[Path]:
    from wsi_dino.evaluation.task_result import find_results
    from wsi_dino.run_folder import safe_name

    folders = find_results(run.path / "mil" / safe_name(task))
    if not folders:
        known = _present(run)
        raise ConfigError(
            f"Comparing task {task!r} in {run.path}: it has no results.{nearest_name(task, known)} Tasks with results: "
            f"{', '.join(known) or 'none'}. `wsi-dino mil --task {task}` makes them."
        )
    names = {folder.name: folder for folder in folders}
    for name in encoders:
        if safe_name(name) not in names:
            raise ConfigError(
                f"Comparing task {task!r}: encoder {name!r} has no results.{nearest_name(name, names)} Encoders with "
                f"results: {', '.join(names)}."
            )
    chosen = [names[safe_name(name)] for name in dict.fromkeys(encoders)] or folders
    if len(chosen) < 2:
        raise ConfigError(
            f"Comparing task {task!r}: it takes two encoders, there is {chosen[0].name} alone. "
            "Run `wsi-dino mil` with another --encoder, on the same folds."
        )
    return chosen


def _print_section(section: dict[str, Any]) -> None:
    from wsi_dino.evaluation.comparison import FIGURES, verdict

    print(
        f"{section['task']}: {section['n_slides']} slides, {section['n_patients']} patients, {section['n_folds']} folds"
    )
    rows = []
    for encoder in section["encoders"]:
        figures = encoder["figures"]
        interval = f"{_number(figures['auc']['low'])} to {_number(figures['auc']['high'])}"
        rows.append({"encoder": encoder["encoder"], "95 % of AUC": interval,
                     **{name: figures[name]["value"] for name in FIGURES}})  # fmt: skip
    console.print_table(rows, ["encoder", "auc", "95 % of AUC", *FIGURES[1:]])
    print()
    console.print_table([_pair_row(pair) for pair in section["pairs"]], _PAIRS)
    print(f"\n{verdict(section)}")
    for pair in section["pairs"]:
        if pair["delong"]["note"]:
            print(f"note: {pair['first']} less {pair['second']}: {pair['delong']['note']}")
    for table in section["published"]:
        print(f"\n{table['table']} of {table['source']}, as published, not reproduced here:")
        console.print_table(table["rows"], ["label", "auc", "accuracy", "precision", "recall", "can_be"])
    print()


def _pair_row(pair: dict[str, Any]) -> dict[str, str]:
    auc, delong, permutation = pair["difference"]["auc"], pair["delong"], pair["permutation"]
    values = [pair["first"], pair["second"], _signed(auc["value"]), f"{_signed(auc['low'])} to {_signed(auc['high'])}"]
    values += [_p(test[name]) for test in (delong, permutation) for name in ("p", "p_holm")]
    return dict(zip(_PAIRS, values, strict=True))


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:+.3f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "none"
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"
