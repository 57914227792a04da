"""All files that an encoder is made of: its weights, and for some families parts and settings beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wsi_dino.encoders.bundle_manifest import read_manifest
from wsi_dino.encoders.hub import Progress
from wsi_dino.encoders.loading import packaged_weights
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import family_of
from wsi_dino.encoders.weights import WeightsFile, bundle_folder, fetch_weights, find_weights

Files = tuple[WeightsFile, ...]


def find_files(record: EncoderSpec, weights: Path | None = None, weights_dir: Path | None = None) -> Files:
    """Return the files on this machine, the weights first; nothing when one is missing.

    Args:
        record: whose files.
        weights: file named by the user; nothing else is tried.
        weights_dir: folder that is looked at first.

    Raises:
        WeightsError: the file or folder named by the user is not there, or a bundle is damaged.
    """
    family = family_of(record)
    if hasattr(family, "find_files"):
        found: Files = family.find_files(record, weights, weights_dir)
        return found if weights is not None else _as_bundled(record, found, weights_dir)
    if is_its_own_file(record):
        path = Path(record.source.removeprefix("file:"))
        return (WeightsFile(path, "file"),) if path.is_file() else ()
    one = find_weights(record, packaged=packaged_weights(record), weights=weights, weights_dir=weights_dir)
    return () if one is None else (one,)


def _as_bundled(record: EncoderSpec, files: Files, weights_dir: Path | None) -> Files:
    """Add what the manifest says where `files` lie in a bundle."""
    place = bundle_folder(record, weights_dir)
    manifest = None if place is None else read_manifest(place)
    if place is None or manifest is None:
        return files
    expected = manifest.digests(place)
    return tuple(
        replace(one, revision=manifest.revision, sha256=expected[one.path]) if one.path in expected else one
        for one in files
    )


def fetch_files(record: EncoderSpec, progress: Progress | None = None) -> Files:
    """Bring what is missing from the hub into its cache, which is announced; return all files, the weights first.

    Args:
        record: whose files.
        progress: told how much of the weights is there; by default a line on stderr every ten seconds.

    Raises:
        WeightsError: they are not on the hub.
        HubError: the hub does not give them; `kind` tells why.
    """
    family = family_of(record)
    if hasattr(family, "fetch_files"):
        fetched: Files = family.fetch_files(record, progress)
        return fetched
    return (fetch_weights(record, progress),)


def is_its_own_file(record: EncoderSpec) -> bool:
    """Return whether the encoder is a file that its name names, such as ``onnx/FILE``."""
    return record.source.startswith("file:") and hasattr(family_of(record), "load")
