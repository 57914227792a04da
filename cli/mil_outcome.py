"""What `wsi-dino mil` says of its results."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_dino.cli import console

if TYPE_CHECKING:
    from wsi_dino.mil.material import Material
    from wsi_dino.mil.run import MilOutcome

_SHOWN = 5
_TABLE = ["auc", "accuracy", "precision", "recall", "f1", "threshold"]


@dataclass(frozen=True)
class Done:
    """What came of one task and encoder."""

    material: Material
    outcome: MilOutcome
    n_unread: int = 0

    @property
    def n_failed(self) -> int:
        """Broken feature files, slides that could not be read, and heatmaps that could not be drawn."""
        return self.material.n_broken + self.n_unread + len(self.outcome.no_heatmap)


def say_exclusions(material: Material) -> None:
    """Say which slides are left out, and why."""
    by_reason: dict[str, list[str]] = {}
    for row in material.exclusions:
        by_reason.setdefault(row.reason, []).append(row.slide_id)
    for reason, slides in by_reason.items():
        more = "" if len(slides) <= _SHOWN else f" and {len(slides) - _SHOWN} more"
        console.say(f"left out, {reason}: {', '.join(slides[:_SHOWN])}{more}")


def print_outcome(done: Done) -> None:
    """Print the figures of one task and encoder, and what to doubt."""
    metrics = done.outcome.metrics
    counts = f"{metrics['n_slides']} slides, {metrics['n_patients']} patients"
    print(f"{metrics['task']} from {metrics['result_name']}: {counts}")
    summary = {name: value["value"] for name, value in metrics["summary"].items()}
    columns = ["fold", "n_test", *(_TABLE if "kind" not in metrics else summary)]
    console.print_table([*metrics["folds"], {"fold": "mean", **summary}], columns)
    title, figure = _headline(metrics)
    print(f"\n{title} {_number(figure['value'])}, 95 % interval {_number(figure['low'])} to {_number(figure['high'])}")
    if "survival" in metrics:
        print(_survival_text(metrics["survival"]))
    for warning in [*metrics["warnings"], *metrics["notes"]]:
        print(f"note: {warning}")
    for slide_id, why in done.outcome.no_heatmap.items():
        print(f"no heatmap of {slide_id}: {why}")
    if done.n_unread:
        print(f"failed: {done.n_unread} slides could not be read and took no part; see exclusions in metrics.json.")
    if done.material.n_broken:
        print(f"failed: {done.material.n_broken} feature files are broken; `wsi-dino embed` makes them again.")
    if done.outcome.report is not None:
        print(f"report: {done.outcome.report}")
    else:
        print(f"results: {done.outcome.folder}")


def print_overview(outcomes: list[Done]) -> None:
    """One row a task and model, one column an encoder, where there are several of any."""
    if len(outcomes) < 2:
        return
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    n_models = len({done.outcome.metrics["model"] for done in outcomes})
    titles = {_headline(done.outcome.metrics)[0] for done in outcomes}
    head = min(titles) if len(titles) == 1 else ""
    for done in outcomes:
        metrics = done.outcome.metrics
        title, figure = _headline(metrics)
        text = f"{_number(figure['value'])} ({_number(figure['low'])} to {_number(figure['high'])})"
        what = f"{metrics['task']}, {metrics['model']}" if n_models > 1 else metrics["task"]
        what = what if len(titles) == 1 else f"{what}, {title}"
        rows.setdefault((metrics["task"], metrics["model"]), {head: what})[metrics["encoder"]] = text
    print()
    console.print_table(
        list(rows.values()), [head, *dict.fromkeys(done.outcome.metrics["encoder"] for done in outcomes)]
    )
    first = outcomes[0].outcome
    several = len({done.outcome.metrics["result_name"] for done in outcomes}) > 1
    if several and first.metrics["permuted_labels"] is None and "kind" not in first.metrics:
        asked = " ".join(f"--task {shlex.quote(task)}" for task in dict.fromkeys(task for task, _ in rows))
        folder = shlex.quote(str(first.folder.parents[2]))
        print(f"Differences, tests and charts: wsi-dino compare --run {folder} {asked}")


def _headline(metrics: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of the figure to look at, and the figure with its interval."""
    headline = metrics.get("headline", {"title": "AUC", "key": "auc"})
    return headline["title"], metrics["summary"][headline["key"]]


def _survival_text(section: dict[str, Any]) -> str:
    groups = ", ".join(f"{g['name']} {g['n']} patients, {g['n_events']} events" for g in section["groups"])
    p = section["log_rank_p"]
    return f"{groups}; log-rank p {'unknown' if p is None else '<0.0001' if p < 1e-4 else f'{p:.4f}'}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def as_json(run: Path, outcomes: list[Done]) -> dict[str, Any]:
    """Return the one JSON object of the command."""
    results = [
        {
            "folder": str(done.outcome.folder),
            "report": None if done.outcome.report is None else str(done.outcome.report),
            "n_failed": done.n_failed,
            "no_heatmap": done.outcome.no_heatmap,
            **done.outcome.metrics,
        }
        for done in outcomes
    ]
    head = {"command": "mil", "run": str(run), "n_failed": sum(done.n_failed for done in outcomes)}
    return {**head, **results[0]} if len(results) == 1 else {**head, "results": results}
