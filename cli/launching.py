"""`--launcher` and `--shard` on the long commands, added to a verb from outside: its own file knows nothing of them."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from wsi_dino import share
from wsi_dino.cli import console
from wsi_dino.cli.launchers.registry import LauncherName
from wsi_dino.cli.options import panel_option
from wsi_dino.errors import ConfigError

_PANEL = "Several processes and machines"
_STATES = ("done", "empty", "failed")

LauncherOption = Annotated[
    LauncherName | None,
    panel_option(
        _PANEL,
        "--launcher",
        help="Start workers on this run and wait for the results: local, one for each GPU or core; slurm, a job "
        "array; ray, on a cluster or here.  [default: none, this process works]",
    ),
]
WorkersOption = Annotated[
    int | None, panel_option(_PANEL, "--launch-workers", min=1, help="How many workers.  [default: by the launcher]")
]
LaunchOption = Annotated[
    list[str] | None,
    panel_option(
        _PANEL,
        "--launch",
        metavar="KEY=VALUE",
        help="Setting of the launcher, e.g. partition=gpu; may be repeated. `launchers:` in wsi-dino.yaml holds more; "
        "docs/scale.md lists all.",
    ),
]
ShardOption = Annotated[
    str,
    panel_option(
        _PANEL, "--shard", metavar="I/N[+]",
        help="Work on the I-th of N parts and stop before results are written, for any scheduler; with + help the "
        "others then. The same command without it writes the results when all are done.",
    ),
]  # fmt: skip
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "launcher": (LauncherOption, None),
    "launch_workers": (WorkersOption, None),
    "launch": (LaunchOption, None),
    "shard": (ShardOption, ""),
}
_typed: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Note what was typed behind ``wsi-dino``: workers are started with the same words."""
    _typed[:] = arguments


def launched(name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
    """Return `verb` with options to divide its work among processes and machines.

    Args:
        name: as typed, e.g. ``"radiology ct"``.
        verb: has the parameter ``run``, and works through item queues.
    """
    hints = typing.get_type_hints(verb, include_extras=True)
    own = [each.replace(annotation=hints[each.name]) for each in inspect.signature(verb).parameters.values()]
    added = [
        inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
        for key, (kind, default) in _OPTIONS.items()
    ]

    @functools.wraps(verb)
    def with_launcher(**given: Any) -> None:
        asked = {key: given.pop(key) for key in _OPTIONS}
        if (ctx := given.get("ctx")) is not None:
            for key in _OPTIONS:
                ctx.params.pop(key, None)
        is_worker = "WSI_DINO_LAUNCH" in os.environ  # started by a launcher that wsi-dino.yaml may name, too
        if asked["launcher"] is None or is_worker:
            return _work(name, lambda: verb(**given), asked["shard"], as_json=bool(given.get("as_json")))
        if asked["shard"]:
            raise ConfigError("--launcher deals out the parts itself: leave out --shard.")
        return _launch(asked, Path(given["run"]), has_threads="workers" in given)

    with_launcher.__signature__ = inspect.Signature([*own[:-1], *added, own[-1]])  # type: ignore[attr-defined]
    with_launcher.__annotations__ = {**hints, **{key: kind for key, (kind, _) in _OPTIONS.items()}}
    return with_launcher


# this process works -----------------------------------------------------------------------------
def _work(name: str, verb: Callable[[], Any], shard: str, *, as_json: bool) -> None:
    with share.using(share.parse_share(shard) if shard else None) as mine:
        try:
            verb()
        except share.PartDone:
            assert mine is not None
            _tell_part(name, mine, as_json=as_json)


def _tell_part(name: str, mine: share.Share, *, as_json: bool) -> None:
    stages = {
        stage: {state: sum(row.get("status", "done") == state for row in rows) for state in _STATES}
        for stage, rows in mine.tally.items()
    }
    totals = {state: sum(counts[state] for counts in stages.values()) for state in _STATES}
    if as_json:
        console.print_json({"command": name, "shard": str(mine), **totals, "stages": stages})
    else:
        told = ", ".join(f"{count} {state}" for state, count in totals.items())
        print(f"shard {mine} is done: {told}. The same command without --shard writes the results.")
    for stage, rows in mine.tally.items():
        for row in rows:
            if row.get("status") == "failed":
                item = next((row[key] for key in ("slide_id", "volume_id", "case_id", "shard") if key in row), "?")
                console.say(f"failed: {stage}: {item}: {row.get('reason') or row.get('message') or ''}")
    console.leave(totals["failed"])


# workers are started ----------------------------------------------------------------------------
def _launch(asked: dict[str, Any], run: Path, *, has_threads: bool) -> None:
    from wsi_dino.cli.launchers.launch import Launch, carry_out
    from wsi_dino.cli.launchers.local import n_gpus

    launcher = LauncherName(asked["launcher"])
    settings = {**_settings_of_project(launcher), **_pairs(asked["launch"] or [])}
    if asked["launch_workers"]:
        settings["workers"] = asked["launch_workers"]
    arguments = without_launching(_typed)
    is_on_cpu = launcher == LauncherName.local and not n_gpus()  # one thread a worker is what there are cores for
    extra = ("--workers", "1") if is_on_cpu and has_threads else ()
    launch = Launch(launcher, settings, arguments, run, extra if "--workers" not in arguments else ())
    end = carry_out(launch)
    sys.stdout.write(end.stdout)
    sys.stdout.flush()
    if end.code:
        sys.exit(end.code if end.code > 0 else 1)


def _settings_of_project(launcher: LauncherName) -> dict[str, Any]:
    from wsi_dino.cli.project_file import read_project_file

    project = read_project_file()
    return dict(project.launchers.get(str(launcher), {})) if project else {}


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--launch {text}: expected KEY=VALUE, as in --launch partition=gpu.")
        pairs[key] = value
    return pairs


def without_launching(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the command line as it would be typed without a launcher.

    Examples:
        >>> without_launching(["tile", "slides", "--launcher", "local", "--launch=retries=1", "--run", "run"])
        ('tile', 'slides', '--run', 'run')
    """
    names = [f"--{key.replace('_', '-')}" for key in _OPTIONS]
    kept, words = [], iter(arguments)
    for word in words:
        if word in names:
            next(words, None)
        elif word.partition("=")[0] not in names:
            kept.append(word)
    return tuple(kept)
