"""Addresses of an object store where a long command takes a folder: copied here before, results sent back after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsi_dino.cli import console
from wsi_dino.errors import ConfigError
from wsi_dino.remote import RemoteFolder, as_url, cache_folder, is_remote
from wsi_dino.share import PartDone

# Of a run in a store: what only processes of one machine tell each other stays here.
_STAYS = (".state/claims/", ".state/workers/", ".state/logs/", ".state/journals/")


@contextmanager
def local_copies(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `given` with local copies for addresses; send the run back when the block has ended well.

    Args:
        given: options of a verb by name; ``run`` is its results' folder.
    """
    remote = {name: value for name, value in given.items() if isinstance(value, Path) and is_remote(value)}
    local = {name: _fetched(as_url(path)) for name, path in remote.items() if name != "run"}
    if "run" in remote:
        local["run"] = _fetched(as_url(remote["run"]), may_be_new=True)
    try:
        yield {**given, **local}
    except (PartDone, SystemExit) as ending:
        if "run" in remote and getattr(ending, "code", 0) in (None, 0, 1):  # 1: some items failed, the others count
            _send_back(as_url(remote["run"]), local["run"])
        raise
    if "run" in remote:
        _send_back(as_url(remote["run"]), local["run"])


def _send_back(url: str, folder: Path) -> None:
    n_files = RemoteFolder(url).upload(folder, skip=_STAYS)
    console.say(f"{n_files} new or changed files of the run are now in {url}")


def refuse_remote_run(given: dict[str, Any]) -> None:
    """Raise ConfigError when workers are to share a run in a store, where no claim can be held."""
    if is_remote(given["run"]):
        raise ConfigError(
            f"--launcher with --run {as_url(given['run'])}: workers share a run by claims, which an object store does "
            "not have. Give a shared folder, or start the parts yourself with --shard I/N."
        )


def refuse_address(command: str, path: Path) -> None:
    """Raise ConfigError when `command`, which works in a folder of this machine, is given an address."""
    if is_remote(path):
        raise ConfigError(f"{command} --run {as_url(path)}: an address is not taken here. Give a folder.")


def _fetched(url: str, *, may_be_new: bool = False) -> Path:
    remote, folder = RemoteFolder(url), cache_folder(url)
    if may_be_new and not remote.exists():
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    console.say(f"copying what is new in {url} to {folder}")
    return remote.fetch(folder)
