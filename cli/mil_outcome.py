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
_TABLE = ["fold", "n_test", "auc", "accuracy", "precision", "recall", "f1", "threshold"]


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
    print(
        f"{metrics['task']} from {metrics['encoder']}: {metrics['n_slides']} slides, {metrics['n_patients']} patients"
    )
    summary = {name: value["value"] for name, value in metrics["summary"].items()}
    console.print_table([*metrics["folds"], {"fold": "mean", **summary}], _TABLE)
    auc = metrics["summary"]["auc"]
    print(f"\nAUC {_number(auc['value'])}, 95 % interval {_number(auc['low'])} to {_number(auc['high'])}")
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
    """One row a task, one column an encoder, where there are several of either."""
    if len(outcomes) < 2:
        return
    rows: dict[str, dict[str, Any]] = {}
    for done in outcomes:
        metrics = done.outcome.metrics
        auc = metrics["summary"]["auc"]
        text = f"{_number(auc['value'])} ({_number(auc['low'])} to {_number(auc['high'])})"
        rows.setdefault(metrics["task"], {"AUC": metrics["task"]})[metrics["encoder"]] = text
    print()
    console.print_table(
        list(rows.values()), ["AUC", *dict.fromkeys(done.outcome.metrics["encoder"] for done in outcomes)]
    )
    first = outcomes[0].outcome
    if len({done.outcome.metrics["encoder"] for done in outcomes}) > 1 and first.metrics["permuted_labels"] is None:
        asked = " ".join(f"--task {shlex.quote(task)}" for task in rows)
        folder = shlex.quote(str(first.folder.parents[2]))
        print(f"Differences, tests and charts: wsi-dino compare --run {folder} {asked}")


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
