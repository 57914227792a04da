"""Running the steps of a plan once each, whatever is killed, and keeping note of what came of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from wsi_dino import __version__
from wsi_dino.claims import try_claim
from wsi_dino.errors import ConfigError, ResultError
from wsi_dino.paper.plan import Plan
from wsi_dino.paper.result_file import read_result, result_fingerprint
from wsi_dino.paper.step import ResultKey, Step
from wsi_dino.provenance import fingerprint
from wsi_dino.run_folder import RunFolder

STAGE = "paper"
Status = Literal["done", "partial", "failed", "waiting"]
RunCommand = Callable[[Sequence[str], Path], int]
_REASON_LETTERS = 400
INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Attributes:
        step: of the plan.
        status: ``done``; ``partial``: the command left with 1, some items failed; ``failed``; ``waiting``: what it
            needs failed.
        exit_code: of the command; None when it was not run.
        reason: of all but ``done``: the last lines that the command said.
        fingerprints: of each ``metrics.json``, by its path below the run.
        is_new: whether it was run now.
    """

    step: Step
    status: Status
    exit_code: int | None = None
    reason: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    is_new: bool = True


def run_plan(
    plan: Plan, run: RunFolder, roots: Mapping[str, Path], run_command: RunCommand,
    tell: Callable[[Step, str], None], keep: Callable[[Sequence[Outcome]], None],
) -> list[Outcome]:  # fmt: skip
    """Run what is not done yet, in order; one failure stops only what needs it.

    Args:
        plan: what to run.
        run: where rows and logs lie.
        roots: folders of data, which are not written into what is kept.
        run_command: runs a command line, its words after ``wsi-dino``, writing what it says to a file.
        tell: called with each step and ``run``, ``reuse`` or its status.
        keep: called with all outcomes so far, before the first step and after each.

    Raises:
        ConfigError: another `paper run` works on this folder.
        KeyboardInterrupt: a command was interrupted.
    """
    claim = try_claim(run.claim_path(STAGE, "run"))
    if claim is None:
        raise ConfigError(f"{run.path}: another `wsi-dino paper run` is at work there. Wait for it, or end it.")
    _listing.cache_clear()
    outcomes: dict[str, Outcome] = {}
    try:
        keep([])
        for step in plan.steps:
            outcomes[step.key] = _outcome(step, outcomes, run, roots, run_command, tell)
            keep(list(outcomes.values()))
    finally:
        claim.release()
    return list(outcomes.values())


def _outcome(
    step: Step, before: Mapping[str, Outcome], run: RunFolder, roots: Mapping[str, Path], run_command: RunCommand,
    tell: Callable[[Step, str], None],
) -> Outcome:  # fmt: skip
    broken = [key for key in step.needs if before[key].status in ("failed", "waiting")]
    if broken:
        tell(step, "waiting")
        return Outcome(step, "waiting", None, f"{', '.join(broken)} failed")
    identity = _identity(step, before, run, roots)
    stored = _finished(step, identity, run)
    if stored is not None:
        tell(step, "reuse")
        return stored
    tell(step, "run")
    log = log_path(run, step)
    code = run_command(step.command, log)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    outcome = _judged(step, code, run, log)
    run.write_row(STAGE, step.key, {
        "key": step.key, "fingerprint": identity, "status": outcome.status, "exit_code": code,
        "reason": outcome.reason, "results": dict(outcome.fingerprints), "command": step.shown(run.path, roots),
    })  # fmt: skip
    tell(step, outcome.status)
    return outcome


def log_path(run: RunFolder, step: Step) -> Path:
    """Return where what a command said is kept."""
    return run.path / "logs" / f"{step.key}.log"


def _judged(step: Step, code: int, run: RunFolder, log: Path) -> Outcome:
    if code not in (0, 1):
        return Outcome(step, "failed", code, last_words(log))
    try:
        found = _fingerprints(step, run)
    except ResultError as error:
        return Outcome(step, "failed", code, f"{last_words(log)} {error}" if code else str(error))
    absent = [path for path in step.outputs if not (run.path / path).is_file()]
    if absent:
        return Outcome(step, "failed", code, f"{last_words(log)} There is no {absent[0]}.")
    return Outcome(step, "done" if code == 0 else "partial", code, last_words(log) if code else "", found)


def _fingerprints(step: Step, run: RunFolder) -> dict[str, str]:
    paths = dict.fromkeys(step.results.values())
    return {path.as_posix(): result_fingerprint(read_result(run.path / path)) for path in paths}


def _finished(step: Step, identity: str, run: RunFolder) -> Outcome | None:
    """Return the outcome of an earlier command whose files are still what they were; one that failed is tried again."""
    row = run.read_row(STAGE, step.key)
    if row is None or row.get("fingerprint") != identity or row.get("status") != "done":
        return None
    try:
        found = _fingerprints(step, run)
    except ResultError:
        return None
    if found != row.get("results") or any(not (run.path / path).is_file() for path in step.outputs):
        return None
    return Outcome(step, "done", 0, "", found, is_new=False)


def _identity(step: Step, before: Mapping[str, Outcome], run: RunFolder, roots: Mapping[str, Path]) -> str:
    """Return what changes when the command, its input or what it is built on changes."""
    needed = [run.read_row(STAGE, key) for key in step.needs]
    chain = [row and (row.get("fingerprint"), row.get("results")) for row in needed]
    return fingerprint(
        __version__, step.shown(run.path, roots), [_listing(path, run.path) for path in step.inputs], chain
    )


@lru_cache(maxsize=256)
def _listing(path: Path, run: Path) -> str:
    """Return a fingerprint of names, sizes and dates of all files: contents are looked at by the commands.

    What lies in the run's own folder does not count, should that be inside the data.
    """
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    lines: list[Any] = []
    for file in files:
        if run in file.parents:
            continue
        stat = file.stat()
        lines.append([file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns])
    return fingerprint(lines)


def last_words(log: Path) -> str:
    """Return the message of the error that ended a command, or its last lines."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return "the command said nothing"
    lines = [line for line in lines if line]
    errors = [number for number, line in enumerate(lines) if line.lower().startswith("error:")]
    failures = [line for line in lines if line.startswith("failed: ")]
    text = " ".join(lines[errors[-1] :] if errors else failures or lines[-2:])
    return text if len(text) <= _REASON_LETTERS else f"{text[:_REASON_LETTERS]} ..."


def result_keys(outcomes: Sequence[Outcome]) -> dict[ResultKey, Outcome]:
    """Return the outcome behind each result."""
    return {key: outcome for outcome in outcomes for key in outcome.step.results}
