"""`wsi-dino weights`: where the weights of encoders are, fetching them, checking them, taking them elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption
from wsi_dino.errors import ConfigError, HubError, StorageError, UnknownEncoderError, WeightsError, WsiDinoError

if TYPE_CHECKING:
    from wsi_dino.encoders.hub import Progress
    from wsi_dino.encoders.record import EncoderSpec
    from wsi_dino.encoders.weights_files import Files

Row = dict[str, Any]
_STATUS_COLUMNS = ["encoder", "where", "size", "revision", "sha256", "gated", "licence", "to_do"]
_DONE_COLUMNS = ["encoder", "status", "size", "checked", "path"]


class Action(StrEnum):
    """What to do with weights."""

    status = "status"
    fetch = "fetch"
    verify = "verify"
    bundle = "bundle"


def weights(
    action: Annotated[Action, typer.Argument(help="status, fetch, verify or bundle.", show_default=False)],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Encoders; for `verify` also files, or NAME=FILE for a file of that encoder, as for `bundle`.",
            show_default=False,
        ),
    ] = None,
    weights_dir: Annotated[
        Path | None,
        typer.Option(
            "--weights-dir",
            help="Folder of checkpoints, looked at before package, cache and hub.  [default: $WSI_DINO_WEIGHTS_DIR]",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="For `bundle`: the folder to make or add to.", show_default=False)
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="For `status`: ask the hub what it would give; fetch nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say where weights are, fetch, check or bundle them.

    status [NAME ...] tells for each encoder where its weights would come from now, without a network.

    fetch NAME ... brings them from the hub into its local cache, and goes on after a broken download.

    verify [NAME|FILE|NAME=FILE ...] reads them: checksum, safe to open, the network they are for.

    bundle NAME|NAME=FILE ... --to FOLDER makes a folder that --weights-dir takes on a machine without a network.

    Order everywhere: --weights FILE, then the folder of --weights-dir or WSI_DINO_WEIGHTS_DIR, the installed
    package, the hub's cache (HF_HOME), the hub (HF_ENDPOINT). WSI_DINO_OFFLINE=1 forbids the network; there is
    never a login. Exit code 1 when some of them failed.
    """
    asked = list(dict.fromkeys(names or []))
    _check_usage(action, asked, to, online)
    if action is Action.status:
        _status(asked, weights_dir, online, as_json)
        return
    if action is Action.verify:
        rows = [_attempt(name, work) for name, work in _to_verify(asked, weights_dir)]
    else:
        rows = [_attempt(name, work) for name, work in _to_fetch(action, asked, weights_dir, to)]
    _finish(action, rows, to, as_json)


def _check_usage(action: Action, asked: list[str], to: Path | None, online: bool) -> None:
    if action in (Action.fetch, Action.bundle) and not asked:
        raise ConfigError(f"`wsi-dino weights {action}` needs the name of an encoder; `weights status` lists them.")
    if (action is Action.bundle) != (to is not None):
        raise ConfigError("`--to FOLDER` belongs to `wsi-dino weights bundle NAME ...`, which needs it.")
    if online and action is not Action.status:
        raise ConfigError("`--online` belongs to `wsi-dino weights status`: fetching uses the network anyway.")


# --- status -----------------------------------------------------------------------------------------


def _status(asked: list[str], weights_dir: Path | None, online: bool, as_json: bool) -> None:
    from wsi_dino.encoders.hub import has_token, is_offline
    from wsi_dino.encoders.registry import records

    chosen = asked or [record.name for record in records()]
    rows = [_state(name, weights_dir, online) for name in chosen]
    if as_json:
        console.print_json(
            {"command": "weights status", "is_token_set": has_token(), "is_offline": is_offline(), "rows": rows}
        )
        return
    shown = [_for_the_eye(row) for row in rows]
    console.print_table(shown, [*_STATUS_COLUMNS, *(["hub_says"] if online else [])])
    token = "an access token is set" if has_token() else "no access token is set (only gated weights need one)"
    console.say(f"{token}; {'the network is forbidden' if is_offline() else 'only --online asks the network'}")


def _state(name: str, weights_dir: Path | None, online: bool) -> Row:
    from wsi_dino.encoders.weights_state import hub_says, unseen_state, weights_state

    try:
        record = _record(name, weights_dir) if online else _known_record(name, weights_dir)
    except HubError as error:
        return vars(unseen_state(name)) | ({"hub_says": f"{error.kind}: {error}"} if online else {})
    return vars(weights_state(record, weights_dir)) | ({"hub_says": hub_says(record)} if online else {})


def _for_the_eye(row: Row) -> Row:
    size = row["size_mb"]
    about = "~" if row["is_size_estimated"] else ""
    return row | {
        "size": "" if size is None else f"{about}{size:.0f} MB",
        "revision": (row["revision"] or "newest" if row["where"] == "hub" else row["revision"] or "")[:12],
        "sha256": "known" if row["is_sha256_known"] else "unknown",
        "gated": "yes" if row["is_gated"] else "no",
        "to_do": row["to_do"].splitlines()[0] if row["to_do"] else "",
    }


# --- fetch, verify, bundle --------------------------------------------------------------------------

Work = Callable[[], Row]


def _attempt(name: str, work: Work) -> Row:
    """Return the row of one encoder; its failure is a row too. A wrong name or a full disk ends the command."""
    try:
        return {"encoder": name, "status": "done", "reason": "", **work()}
    except (StorageError, UnknownEncoderError):
        raise
    except WsiDinoError as error:
        kind = getattr(error, "kind", "file")
        return {"encoder": name, "status": "failed", "kind": kind, "reason": str(error)}


def _to_fetch(
    action: Action, asked: list[str], weights_dir: Path | None, to: Path | None
) -> Iterator[tuple[str, Work]]:
    named = [_split(text) for text in asked]
    chosen = [(_record(name, weights_dir), file) for name, file in named]  # a wrong name fetches nothing
    for record, file in chosen:
        if action is Action.fetch and file is not None:
            raise ConfigError(f"`wsi-dino weights fetch {record.name}` takes no file; `verify` checks one.")
        yield record.name, partial(_brought, record, file, weights_dir, to)


def _brought(record: EncoderSpec, file: Path | None, weights_dir: Path | None, to: Path | None) -> Row:
    from wsi_dino.encoders.weights_check import verify_weights
    from wsi_dino.encoders.weights_files import fetch_files

    if record.dimensions == 3:
        raise WeightsError(f"{record.name} is listed for comparison only: it takes {record.takes}. {record.notes}")
    files, status = _present(record, file, weights_dir), "present"
    if not files:
        with _bar(record.name) as progress:
            files, status = fetch_files(record, progress), "fetched"
    if to is None:
        verdict = verify_weights(record, files, file, weights_dir)
        row = _row(files[0].path, verdict.sha256, verdict.compared_with, record, files[0].revision)
        return row | {"status": status}
    from wsi_dino.encoders.bundle import bundle_weights
    from wsi_dino.encoders.bundle_manifest import folder_name

    manifest = bundle_weights(record, files, to, file)
    path = to / folder_name(record.name) / manifest.file
    return _row(path, manifest.sha256, ("bundle",), record, manifest.revision)


def _row(
    path: Path, sha256: str, compared_with: tuple[str, ...], record: EncoderSpec | None, revision: str | None
) -> Row:
    return {
        "path": path,
        "size_mb": round(path.stat().st_size / 1e6, 1),
        "sha256": sha256,
        "compared_with": compared_with,
        "revision": revision,
        "licence": record.licence if record else None,
        "obligations": record.obligations if record else (),
    }


def _present(record: EncoderSpec, file: Path | None, weights_dir: Path | None) -> Files:
    """Return what is on this machine; a damaged file of the cache is removed, to be fetched anew."""
    from wsi_dino.encoders.hub import discard_cached
    from wsi_dino.encoders.weights import verified_sha256
    from wsi_dino.encoders.weights_files import find_files

    files = find_files(record, file, weights_dir)
    damaged = False
    for one in files:
        if one.source == "cache":
            try:
                verified_sha256(record, one, reread=True)
            except WeightsError as error:
                console.say(f"{error}\n  Removed from the cache.")
                discard_cached(one.path)
                damaged = True
    return () if damaged else files


def _to_verify(asked: list[str], weights_dir: Path | None) -> Iterator[tuple[str, Work]]:
    if not asked:
        yield from _all_local(weights_dir)
    for text in asked:
        name, file = _split(text)
        if file is None and (Path(name).exists() or name.endswith((".pth", ".bin", ".pt", ".safetensors"))):
            yield name, partial(_verified_file, Path(name))
        else:
            yield name, partial(_verified, name, file, weights_dir)


def _all_local(weights_dir: Path | None) -> Iterator[tuple[str, Work]]:
    from wsi_dino.encoders.bundle import bundled_encoders
    from wsi_dino.encoders.registry import records
    from wsi_dino.encoders.weights_files import find_files

    known = {record.name: record for record in records()}
    bundled = bundled_encoders(weights_dir) if weights_dir else []
    for name in [*known, *(name for name in bundled if name not in known)]:
        try:
            if name in known and not find_files(known[name], weights_dir=weights_dir):
                continue
        except WeightsError as error:
            if weights_dir is not None and not weights_dir.is_dir():
                raise ConfigError(str(error)) from error
        yield name, partial(_verified, name, None, weights_dir)


def _verified(name: str, file: Path | None, weights_dir: Path | None) -> Row:
    from wsi_dino.encoders.weights_check import verify_weights
    from wsi_dino.encoders.weights_files import find_files

    record = _known_record(name, file or weights_dir)
    files = find_files(record, file, weights_dir)
    if not files:
        raise WeightsError(
            f"{record.name}: its weights are not on this machine. `wsi-dino weights status {record.name}`"
        )
    verdict = verify_weights(record, files, file, weights_dir)
    row = _row(files[0].path, verdict.sha256, verdict.compared_with, record, files[0].revision)
    return row | {"n_tensors": verdict.n_tensors, "fits": verdict.fits}


def _verified_file(path: Path) -> Row:
    from wsi_dino.encoders.weights_check import verify_file

    verdict = verify_file(path)
    row = _row(path, verdict.sha256, verdict.compared_with, None, None)
    if not verdict.fits:
        console.say(f"{path}: opens safely; for which network nobody says. `wsi-dino weights verify NAME={path}`")
    return row | {"encoder": verdict.encoder, "n_tensors": verdict.n_tensors, "fits": verdict.fits}


def _finish(action: Action, rows: list[Row], to: Path | None, as_json: bool) -> None:
    failed = [row for row in rows if row["status"] == "failed"]
    if as_json:
        console.print_json({"command": f"weights {action}", "rows": rows})
    else:
        done = [row for row in rows if row["status"] != "failed"]
        if done:
            console.print_table([_with_check(row) for row in done], _DONE_COLUMNS)
        for row in failed:
            console.say(f"failed: {row['reason']}")
        if action is Action.bundle and done:
            _say_terms(done)
            console.say(f"Copy {to} to the other machine and give --weights-dir {to}, or set WSI_DINO_WEIGHTS_DIR.")
    console.leave(len(failed))


def _with_check(row: Row) -> Row:
    against = ", ".join(row["compared_with"])
    fits = "" if row.get("fits", True) else "; network not checked"
    checked = (f"as {against} says" if against else "no checksum is known") + fits
    return row | {"size": f"{row['size_mb']:.1f} MB", "checked": checked}


def _say_terms(rows: list[Row]) -> None:
    console.say("Passing a bundle on is redistribution; under which terms, the licences say:")
    for row in rows:
        console.say(" ".join((f"  {row['encoder']}: {row['licence']}.", *row["obligations"])))


# --- names and progress -----------------------------------------------------------------------------


def _split(text: str) -> tuple[str, Path | None]:
    name, equals, file = text.partition("=")
    return (name, Path(file)) if equals and file else (text, None)


def _record(name: str, near: Path | None) -> EncoderSpec:
    from wsi_dino.encoders.registry import get_record

    return get_record(name, near=[near] if near else [])


def _known_record(name: str, near: Path | None) -> EncoderSpec:
    """Return a record without asking the hub, from whose files some records are made."""
    from wsi_dino.encoders.hub import without_network

    with without_network():
        return _record(name, near)


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """Show the progress of a download in MB; the bar appears with the first bytes, after what is said before."""
    with ExitStack() as stack:
        bars: list[console.Progress] = []
        done_mb = 0.0

        def report(done_bytes: int, total_bytes: int) -> None:
            nonlocal done_mb
            if not bars:
                bars.append(stack.enter_context(console.progress(name, total_bytes / 1e6, unit="MB")))
            bars[0](done_bytes / 1e6 - done_mb)
            done_mb = done_bytes / 1e6

        yield report
