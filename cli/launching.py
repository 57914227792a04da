"""`--launcher` and `--shard` on the long commands, added to a verb from outside: its own file knows nothing of them."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from wsi_dino import share
from wsi_dino.cli import console
from wsi_dino.cli.launchers.registry import LauncherName
from wsi_dino.cli.options import panel_option
from wsi_dino.cli.remote_paths import local_copies, refuse_remote_run
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
_OF_STEPS = ("launcher", "launch_workers", "launch")
_typed: list[str] = []
_launchable: set[str] = set()
_passed_on: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Note what was typed behind ``wsi-dino``: workers are started with the same words."""
    _typed[:] = arguments


class Cores(StrEnum):
    """How several workers on the cores of one machine keep out of each other's way, with the same results.

    Attributes:
        one: each gets ``--workers 1``; results do not depend on threads.
        shared: each takes its part of the cores, and cuts batches as one process alone would.
        all: results depend on threads, so each has all of them; on a CPU one worker is the default.
    """

    one = "one"
    shared = "shared"
    all = "all"


def launched(name: str, verb: Callable[..., Any], cores: Cores = Cores.shared) -> Callable[..., Any]:
    """Return `verb` with options to divide its work among processes and machines.

    Args:
        name: as typed, e.g. ``"radiology ct"``.
        verb: has the parameter ``run``, and works through item queues.
        cores: what workers on one machine do about its cores.
    """
    _launchable.add(name)

    @functools.wraps(verb)
    def with_launcher(**given: Any) -> None:
        asked = {key: given.pop(key) for key in _OPTIONS}
        if (ctx := given.get("ctx")) is not None:
            for key in _OPTIONS:
                ctx.params.pop(key, None)
        is_worker = "WSI_DINO_LAUNCH" in os.environ  # started by a launcher that wsi-dino.yaml may name, too
        if asked["launcher"] is None or is_worker:
            return _work(name, verb, given, asked["shard"])
        if asked["shard"]:
            raise ConfigError("--launcher deals out the parts itself: leave out --shard.")
        refuse_remote_run(given)
        return _launch(asked, Path(given["run"]), cores)

    return _with_options(with_launcher, verb, tuple(_OPTIONS))


def launching_steps(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Return `verb`, which runs other commands, with the options of a launcher for those that can be launched."""

    @functools.wraps(verb)
    def with_launcher(**given: Any) -> None:
        asked = {key: given.pop(key) for key in _OF_STEPS}
        words = [] if asked["launcher"] is None else ["--launcher", str(asked["launcher"])]
        for text in asked["launch"] or ():
            words += ["--launch", text]
        if asked["launch_workers"]:
            words += ["--launch-workers", str(asked["launch_workers"])]
        _passed_on[:] = words if asked["launcher"] is not None else []
        try:
            verb(**given)
        finally:
            _passed_on.clear()

    return _with_options(with_launcher, verb, _OF_STEPS)


def passed_on(words: Sequence[str]) -> list[str]:
    """Return the words of a step as it is to be run: with the launcher of the command that runs it, if it takes one."""
    can = any(list(words[: len(name.split())]) == name.split() for name in _launchable)
    return [*words, *_passed_on] if can else list(words)


def _with_options(wrapper: Callable[..., Any], verb: Callable[..., Any], keys: Sequence[str]) -> Callable[..., Any]:
    """Return `wrapper` with the parameters of `verb`, and the options `keys` before the last."""
    hints = typing.get_type_hints(verb, include_extras=True)
    own = [each.replace(annotation=hints[each.name]) for each in inspect.signature(verb).parameters.values()]
    options = {key: _OPTIONS[key] for key in keys}
    added = [
        inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
        for key, (kind, default) in options.items()
    ]
    wrapper.__signature__ = inspect.Signature([*own[:-1], *added, own[-1]])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**hints, **{key: kind for key, (kind, _) in options.items()}}
    return wrapper


# this process works -----------------------------------------------------------------------------
def _work(name: str, verb: Callable[..., Any], given: dict[str, Any], shard: str) -> None:
    with share.using(share.parse_share(shard) if shard else None) as mine:
        try:
            with local_copies(given) as here:
                verb(**here)
        except share.PartDone:
            assert mine is not None
            _tell_part(name, mine, as_json=bool(given.get("as_json")))


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
def _launch(asked: dict[str, Any], run: Path, cores: Cores) -> None:
    from wsi_dino.cli.launchers.launch import Launch, carry_out
    from wsi_dino.cli.launchers.local import n_gpus

    launcher = LauncherName(asked["launcher"])
    settings = {**_settings_of_project(launcher), **_pairs(asked["launch"] or [])}
    if asked["launch_workers"]:
        settings["workers"] = asked["launch_workers"]
    arguments = without_launching(_typed)
    is_crowded = _is_on_this_machine(launcher, settings) and not n_gpus()
    if is_crowded and cores == Cores.all:
        settings.setdefault("workers", 1)
    extra = ("--workers", "1") if is_crowded and cores == Cores.one and "--workers" not in arguments else ()
    launch = Launch(launcher, settings, arguments, run, extra, is_crowded and cores == Cores.shared)
    end = carry_out(launch)
    sys.stdout.write(end.stdout)
    sys.stdout.flush()
    if end.code:
        sys.exit(end.code if end.code > 0 else 1)


def _is_on_this_machine(launcher: LauncherName, settings: dict[str, Any]) -> bool:
    is_trial = launcher == LauncherName.slurm and settings.get("cluster") == "local"
    return launcher == LauncherName.local or is_trial or (launcher == LauncherName.ray and not settings.get("address"))


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
