"""``paper.json``: what a run planned and what came of it; what the report is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_dino import __version__
from wsi_dino.errors import ResultError
from wsi_dino.paper.plan import Plan
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.running import Outcome
from wsi_dino.paper.step import ResultKey
from wsi_dino.provenance import write_json_atomically

FILE = "paper.json"
_FORMAT = "wsi_dino.paper/1"


@dataclass(frozen=True)
class StoredResult:
    """One ``metrics.json`` of a run.

    Attributes:
        key: dataset, variant, encoder.
        kind: track.
        path: below the run.
        fingerprint: of its content without times, when the step ended; empty when it did not get there.
        status, reason: of the step.
        step: its key.
        command: as typed, with marks for folders.
    """

    key: ResultKey
    kind: str
    path: str
    fingerprint: str
    status: str
    reason: str
    step: str
    command: str


@dataclass(frozen=True)
class PaperState:
    """Content of the file.

    Attributes:
        encoders: that were asked for, in all commands on this run.
        datasets: kind of each dataset that was at hand.
        missing_encoders, missing_datasets: why they could not be run.
        results: by key.
        steps: all steps as plain values.
    """

    encoders: tuple[str, ...] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)
    missing_encoders: Mapping[str, str] = field(default_factory=dict)
    missing_datasets: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[ResultKey, StoredResult] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()


def write_state(
    run: Path, plan: Plan, entries: Mapping[str, Entry], outcomes: Sequence[Outcome], before: PaperState
) -> None:
    """Write the file; steps of earlier commands that this plan does not have stay in it."""
    write_json_atomically(run / FILE, _content(run, plan, entries, outcomes, before))


def planned_state(run: Path, plan: Plan, entries: Mapping[str, Entry], before: PaperState) -> PaperState:
    """Return what the file would hold before anything is run."""
    return _parsed(_content(run, plan, entries, [], before))


def _content(
    run: Path, plan: Plan, entries: Mapping[str, Entry], outcomes: Sequence[Outcome], before: PaperState
) -> dict[str, Any]:
    roots = {name: entry.root for name, entry in entries.items()}
    now = {outcome.step.key: _step_row(outcome, run, roots) for outcome in outcomes}
    planned = {step.key: _planned_row(step, run, roots) for step in plan.steps}
    rows = {str(row["key"]): dict(row) for row in before.steps}
    for key, row in planned.items():
        rows[key] = now.get(key) or (rows[key] if rows.get(key, {}).get("command") == row["command"] else row)
    encoders = list(dict.fromkeys([*before.encoders, *plan.encoders]))
    missing = {**before.missing_encoders, **plan.missing_encoders}
    found = [name for name in plan.encoders if name not in plan.missing_encoders]
    datasets = {**before.datasets, **{name: entry.kind for name, entry in entries.items()}}
    return {
        "format": _FORMAT, "version": __version__, "encoders": encoders,
        "datasets": {name: datasets[name] for name in sorted(datasets)},
        "missing_encoders": {name: why for name, why in sorted(missing.items()) if name not in found},
        "missing_datasets": {name: why for name, why in sorted({**before.missing_datasets,
                             **plan.missing_datasets}.items()) if name not in entries or name in plan.missing_datasets},
        "steps": [rows[key] for key in sorted(rows)],
    }  # fmt: skip


def _planned_row(step: Any, run: Path, roots: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "key": step.key, "kind": step.kind, "dataset": step.dataset, "encoder": step.encoder,
        "command": step.shown(run, roots), "status": "planned", "exit_code": None, "reason": "not run yet",
        "results": [
            {"variant": key.variant, "path": path.as_posix(), "fingerprint": ""} for key, path in step.results.items()
        ],
    }  # fmt: skip


def _step_row(outcome: Outcome, run: Path, roots: Mapping[str, Path]) -> dict[str, Any]:
    row = _planned_row(outcome.step, run, roots)
    for result in row["results"]:
        result["fingerprint"] = outcome.fingerprints.get(result["path"], "")
    reason = _without_places(outcome.reason, run, roots)
    return row | {"status": outcome.status, "exit_code": outcome.exit_code, "reason": reason}


def _without_places(text: str, run: Path, roots: Mapping[str, Path]) -> str:
    for name, root in sorted(roots.items(), key=lambda item: -len(str(item[1]))):
        text = text.replace(str(root), f"DATA[{name}]")
    return text.replace(str(run), "RUN")


def read_state(run: Path, *, must_exist: bool = True) -> PaperState:
    """Read the file of a run.

    Raises:
        ResultError: it is not there, or broken.
    """
    path = run / FILE
    if not path.exists() and not must_exist:
        return PaperState()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {_FORMAT!r}")
        return _parsed(content)
    except FileNotFoundError as error:
        raise ResultError(
            f"Reading {path}: there is no such file. Run `wsi-dino paper run --data ROOTS.yaml --run {run}` first."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"Reading {path}: broken ({error!r}). `wsi-dino paper run` with --encoder writes it anew."
        ) from error


def _parsed(content: Mapping[str, Any]) -> PaperState:
    results = {}
    for row in content["steps"]:
        for result in row["results"]:
            key = ResultKey(row["dataset"], result["variant"], row["encoder"])
            results[key] = StoredResult(key, row["kind"], result["path"], result["fingerprint"], row["status"],
                                        row["reason"], row["key"], row["command"])  # fmt: skip
    return PaperState(
        tuple(content["encoders"]), dict(content["datasets"]), dict(content["missing_encoders"]),
        dict(content["missing_datasets"]), results, content["steps"],
    )  # fmt: skip
